"""The pass `quantize`: weights onto grids of 8 or 4 bits, zeros staying zero, and activations rounded beside them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from compressor.calibrate import calibrate
from compressor.errors import DataError, InternalError, RecipeError
from compressor.graph import Graph
from compressor.passes.damping import choose_lambda, dampen
from compressor.passes.grids import grid
from compressor.passes.placement import Place, after, with_outputs
from compressor.passes.ranges import RANGES, SAMPLE, Seen
from compressor.passes.refit import squared_error
from compressor.passes.rounding import nearest, solve
from compressor.passes.smoothing import smooth
from compressor.passes.tables import round_table, tables
from compressor.pipeline import Context, Outcome, Row, check_glob, choose, in_order, matches
from compressor.quantization import Grid, Kernels, Point, Rounding, largest_code
from compressor.registry import unknown
from compressor.rounded import round_activations
from compressor.sites import WeightSite
from compressor.statistics import Statistics
from compressor.watching import watch

KINDS = ("int8", "int8-dynamic", "int4")
OUTPUTS = ("auto", "none", "all")
REFITS = 2
"""Of the scales of 4-bit codes. On a GPT-2 two take off a tenth of the error, and six no more."""
NOTHING = "nothing was quantized"
TIED = "tied to an embedding: in float unless --embeddings"


@dataclass(frozen=True)
class Quantize:
    """Weights and the activations they are multiplied with as integers of 8 or 4 bits; zeros stay zero.

    kind: "int8" 8-bit weights, convolutions among them, and activations rounded to 8 bits by ranges that calibration
        data tells; "int8-dynamic" the same by their range at run time, products of matrices alone; "int4" 4-bit
        weights with a scale for each `group` neighbours of a row, and activations rounded to 8 bits in such groups.
    ranges: for int8, how a range is chosen. "mse" so that rounding costs least; "percentile" all but the outermost
        values; "minmax" all.
    smooth: for int8 and int8-dynamic, how far loud channels are made smaller in the layer normalizations that make
        them, and the weights that read them larger: 0 not at all, 1 until all are alike.
    outputs: for int8, whose outputs are rounded too. "auto" what the runtime's kernels need; "none"; "all", for sparse
        kernels of TensorRT on GPUs before Hopper, which make codes of codes alone.
    sweeps: passes of coordinate descent that round each weight so as to make up for the others, as the layer's outputs
        on calibration data tell (0 rounds each to the nearest).
    group: weights that share a scale, for int4; a power of two from 16 on.
    embeddings: whether embeddings are quantized too, to 8 bits; a weight that is tied to one is stored once for both.
    damping: share of each channel's energy added to the Gram matrix; 0 chooses clamp(d / rows, 0.01, 1).
    samples: how many calibration samples are used.
    targets, ignore: globs over site names. wide: of those that get 8 bits where int4 would give them 4.
    """

    name: ClassVar[str] = "quantize"
    needs_dense: ClassVar[bool] = False
    without_data: ClassVar[str] = "--quantize int8-dynamic --sweeps 0"

    kind: str
    ranges: str = "mse"
    smooth: float = 0.0
    outputs: str = "auto"
    sweeps: int = 4
    group: int = 32
    embeddings: bool = False
    damping: float = 0.0
    samples: int = 128
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of quantization", self.kind, KINDS)
        if self.ranges not in RANGES:
            raise unknown("choice of ranges", self.ranges, RANGES)
        if self.outputs not in OUTPUTS:
            raise unknown("choice of outputs", self.outputs, OUTPUTS)
        if self.group < 16 or self.group & (self.group - 1):
            raise RecipeError(f"group cannot be {self.group}", hint="a power of two from 16 on; 32, 64 or 128")
        if not 0 <= self.smooth <= 1 or (self.smooth and self.kind == "int4"):
            raise RecipeError(
                f"smooth cannot be {self.smooth} for {self.kind}", hint="0 to 1, for int8 or int8-dynamic"
            )
        if self.wide and self.kind != "int4":
            raise RecipeError(f"wide cannot be {', '.join(self.wide)} for {self.kind}", hint="--quantize int4")
        if min(self.sweeps, self.damping) < 0 or self.samples < 1:
            raise RecipeError("sweeps and damping cannot be negative, and samples must be at least 1")

    @property
    def needs_data(self) -> bool:
        """Dynamic ranges and rounding to the nearest read the weights alone."""
        return self.sweeps > 0 or self.kind == "int8" or self.smooth > 0

    def plan(self, graph: Graph) -> list[Row]:
        left = {} if self.embeddings else {"tied": TIED}
        named, rows = choose(graph.sites, self.targets, self.ignore, graph.orphans, left)
        for glob in self.wide:
            check_glob(glob, [site.name for site in graph.sites])
        for site in named:
            reason = self._refusal(site)
            rows.append(Row(site.name, "refused" if reason else "changed", reason, dtype=f"int{self._bits(site)}"))
        if self.embeddings:
            rows += [Row(name, "changed", dtype="int8") for name in tables(graph, self.targets, self.ignore)]
        return in_order(rows, graph, f"no site can be quantized to {self.kind}", "another --quantize, or other targets")

    def run(self, graph: Graph, context: Context) -> Outcome:
        rows = {row.site: row for row in self.plan(graph)}
        sites = [site for site in graph.sites if rows[site.name].status == "changed"]
        kernels = context.kernels.get(self.kind, Kernels())
        if self.smooth:
            smooth(graph, sites, context.calibration(self.samples), self.smooth, context.progress)
        points = self._points(sites)
        if self.kind == "int8":
            points, silent = self._static(graph, sites, kernels, context)
            rows |= {site.name: Row(site.name, "refused", reason) for site, reason in silent.items()}
            sites = [site for site in sites if site not in silent]
        for site, statistics in self._seen(graph, sites, context):
            graph.grids[site.name], error = self._round(site, statistics, kernels)
            rows[site.name] = dataclasses.replace(rows[site.name], numbers=error)
        if self.embeddings:
            graph.grids |= {name: round_table(graph, name) for name in tables(graph, self.targets, self.ignore)}
        round_activations(graph, points)
        return Outcome(tuple(in_order(rows.values(), graph, NOTHING, "calibration data that the model reacts to")))

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        names = {one.name for one in graph.orphans}
        changed = {row.site for row in outcome.of("changed")} - names
        sites = [site for site in graph.sites if site.name in changed]
        if {site.name for site in sites} != changed or not changed <= graph.grids.keys():
            raise InternalError(f"quantize says it changed {sorted(changed)}")
        for site in sites:
            found = graph.grids[site.name]
            found.codes(site.matrix())
            if not (torch.isfinite(found.scale) & (found.scale > 0)).all():
                raise InternalError(f"{site.name} has a scale that is not a positive number")

    # *** what it could spare ***

    @property
    def spared(self) -> str:
        return "in 8 bits" if self.kind == "int4" else "in float"

    def spares(self, outcome: Outcome) -> list[str]:
        return [row.site for row in outcome.of("changed") if self.kind != "int4" or row.dtype == "int4"]

    def sparing(self, names: Sequence[str]) -> "Quantize":
        if self.kind == "int4":
            return dataclasses.replace(self, wide=(*self.wide, *names))
        return dataclasses.replace(self, ignore=(*self.ignore, *names))

    # *** weights ***

    def _bits(self, site: WeightSite) -> int:
        is_wide = site.other_users or any(matches(site.name, glob) for glob in self.wide)
        return 4 if self.kind == "int4" and not is_wide else 8

    def _refusal(self, site: WeightSite) -> str:
        """Why a site cannot be quantized, or ""."""
        if site.conflict:
            return site.conflict
        if site.layout == "kernel" and self.kind != "int8":
            return f"a convolution has no {self.kind} kernel"
        if self._bits(site) == 4 and site.d % self.group:
            return f"its rows of {site.d} are no multiple of the group of {self.group}"
        return ""

    def _seen(
        self, graph: Graph, sites: Sequence[WeightSite], context: Context
    ) -> Iterator[tuple[WeightSite, Statistics | None]]:
        """Each site with the statistics of its inputs, block after block on what the blocks before now compute."""
        if not self.sweeps:
            yield from ((site, None) for site in sites)
            return
        batches = context.calibration(self.samples)
        for block in calibrate(graph, sites, batches, seed=context.seed, progress=context.progress):
            yield from block.statistics.items()

    def _round(
        self, site: WeightSite, statistics: Statistics | None, kernels: Kernels
    ) -> tuple[Grid, dict[str, float]]:
        """Write the site's weights, rounded; returns their grid and the numbers of its row."""
        bits, W = self._bits(site), site.matrix()  # (groups, m, d)
        H = None if statistics is None else statistics.gram()  # (groups, d, d)
        largest = largest_code(4) if bits == 4 else kernels.largest
        made = Grid(bits, largest, grid(W, largest, self.group if bits == 4 else 0, H))
        S = made.spread(site.d)
        if H is None or statistics is None:
            site.write(nearest(W, S, made.largest))
            return made, {}
        lam = self.damping or choose_lambda(site.d, statistics.n)
        # An embedding reads single weights: rounding that makes up for others would only add to its errors.
        sweeps = 0 if site.other_users else self.sweeps
        refits = REFITS if bits == 4 and sweeps else 0
        solved = [
            solve(W_g, s_g, dampen(H_g, lam), made.largest, sweeps, refits)
            for W_g, s_g, H_g in zip(W, made.scale, H, strict=True)
        ]
        made = dataclasses.replace(made, scale=torch.stack([scale for _, scale in solved]))
        Q = torch.stack([Q_g for Q_g, _ in solved])
        site.write(Q)
        return made, {"rounding_error": _relative(Q, W, H)}

    # *** activations ***

    def _static(
        self, graph: Graph, sites: Sequence[WeightSite], kernels: Kernels, context: Context
    ) -> tuple[list[Point], dict[WeightSite, str]]:
        """Roundings by what calibration data shows, and the sites that it shows nothing of, with the reason."""
        batches = context.calibration(self.samples)
        if not batches:
            raise DataError("no calibration data to tell ranges by", hint="--data, or --quantize int8-dynamic")
        places = self._places(graph, sites, kernels)
        share, generator = SAMPLE // len(batches) + 1, torch.Generator().manual_seed(context.seed)
        seen = {place.value: Seen(share, generator) for place in places if place.like is None}
        watch(graph, batches, seen, context.progress)
        if silent := _silent(sites, places, seen):
            places = self._places(graph, [site for site in sites if site not in silent], kernels)
        chosen = {value: one.rounding(self.ranges, kernels.is_symmetric) for value, one in seen.items() if one.varies}
        return [_point(place, chosen[place.like or place.value]) for place in places], silent

    def _places(self, graph: Graph, sites: Sequence[WeightSite], kernels: Kernels) -> list[Place]:
        makers = [site for site in sites if self.outputs == "all" or site.layout == "kernel"]
        if self.outputs == "none" or (self.outputs == "auto" and not kernels.rounds_outputs):
            makers = []
        return with_outputs(graph.module.graph, sites, makers)

    def _points(self, sites: Sequence[WeightSite]) -> list[Point]:
        """One rounding per activation, for all the sites that read it."""
        readers: dict[tuple[str, Rounding], list[str]] = {}
        for site in sites:
            for use in site.uses:
                key = (use.activation.name, self._rounding(site))
                readers.setdefault(key, []).append(use.node.name)
        return [Point(value, tuple(nodes), how) for (value, how), nodes in readers.items()]

    def _rounding(self, site: WeightSite) -> Rounding:
        return Rounding("block", group=self.group) if self._bits(site) == 4 else Rounding("tensor")


def _point(place: Place, how: Rounding) -> Point:
    return Point(place.value.name, tuple(reader.name for reader in place.readers), how)


def _silent(
    sites: Sequence[WeightSite], places: Sequence[Place], seen: Mapping[fx.Node, Seen]
) -> dict[WeightSite, str]:
    """The sites that read or make a value which never varies, and so has no range."""
    still = {place.value for place in places if not seen[place.like or place.value].varies}
    found = {}
    for site in sites:
        if any(use.activation in still for use in site.uses):
            found[site] = "what it reads never varies on the calibration data"
        elif any(after(use.node) in still for use in site.uses):
            found[site] = "what it computes never varies on the calibration data"
    return found


def _relative(Q: Tensor, W: Tensor, H: Tensor) -> float:
    """The error of Q in place of W as a share of the outputs' energy, over all groups."""
    lost = sum(squared_error(Q_g, W_g, H_g) for Q_g, W_g, H_g in zip(Q, W, H, strict=True))
    energy = sum(squared_error(torch.zeros_like(W_g), W_g, H_g) for W_g, H_g in zip(W, H, strict=True))
    return lost / energy if energy else 0.0
