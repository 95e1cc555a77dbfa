"""The pass `sparsify`: weights to zero along the contracted axis, the kept ones refitted to the layer's outputs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compressor.calibrate import calibrate
from compressor.errors import InternalError, RecipeError
from compressor.graph import Graph
from compressor.passes.damping import choose_lambda, dampen
from compressor.passes.masks import global_ratio_keep, nm_fraction
from compressor.passes.methods import METHODS, by_magnitude
from compressor.passes.offset import centre, mean_change
from compressor.passes.refit import conjugate_gradients, squared_error
from compressor.pattern import NM, Pattern, Ratio, parse_pattern
from compressor.pipeline import Context, Outcome, Row, choose
from compressor.registry import unknown
from compressor.sites import WeightSite
from compressor.statistics import Statistics

SCOPES = ("site", "global")


@dataclass(frozen=True)
class Sparsify:
    """Zero the least important weights of each named site, one-shot, block after block.

    pattern: "2:4" keeps at most 2 of every 4 weights along the contracted axis; "0.5" removes half of them.
    method: how weights are scored. "magnitude" |W|; "wanda" |W| * ||X|| (Sun et al. 2023); "sparsegpt" by the
        optimal-brain-surgeon error, with compensation (Frantar & Alistarh 2023); "admm" by a solver that fits the
        outputs and the pattern together (Meng et al. 2024): the best masks, and the slowest on wide layers.
    scope: for a ratio, whether each site loses that share ("site") or all sites together do ("global",
        which ranks scores across sites and so serves magnitude only).
    refit: conjugate-gradient steps on the kept weights after the mask is chosen (0 switches it off).
    bias: whether the bias of a site is refitted with its weights, which are then chosen by what their inputs vary and
        not by their means. Where a batch normalization reads the site, its running mean stands for the bias; a site
        that has neither keeps its means.
    damping: share of each channel's energy added to the Gram matrix; 0 chooses clamp(d / rows, 0.01, 1).
    samples: how many calibration samples are used.
    targets, ignore: globs over site names.
    """

    name: ClassVar[str] = "sparsify"

    pattern: str
    method: str = "sparsegpt"
    scope: str = "site"
    refit: int = 10
    bias: bool = False
    damping: float = 0.0
    samples: int = 128
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", str(parse_pattern(self.pattern)))
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)
        if self.scope == "global" and not isinstance(self._pattern, Ratio):
            raise RecipeError(
                f"scope=global needs a ratio, not {self.pattern}",
                found="an N:M pattern removes the same share from every site",
                hint="--sparsity 0.5, or scope=site",
            )
        if self.scope == "global" and self.method != "magnitude":
            raise RecipeError(
                f"scope=global cannot rank {self.method} scores",
                found="they depend on the sites before, which are pruned first",
                hint="--method magnitude, or scope=site",
            )
        if self.refit < 0 or self.damping < 0 or self.samples < 1:
            raise RecipeError("refit and damping cannot be negative, and samples must be at least 1")

    @property
    def _pattern(self) -> Pattern:
        return parse_pattern(self.pattern)

    @property
    def needs_data(self) -> bool:
        """Magnitude without refit or bias reads the weights alone."""
        return self.method != "magnitude" or self.refit > 0 or self.bias

    def plan(self, graph: Graph) -> list[Row]:
        named, rows = choose(graph.sites, self.targets, self.ignore, graph.orphans)
        for site in named:
            reason = refusal(site, self._pattern)
            rows.append(Row(site.name, "refused" if reason else "changed", reason, asked=self.pattern))
        if not any(row.status == "changed" for row in rows):
            reasons = sorted({f"{row.reason} ({row.site})" for row in rows})
            raise RecipeError(
                f"no site can take {self.pattern}",
                found="; ".join(reasons[:4]) or "a model without weight sites",
                hint="compress plan MODEL --sparsity 0.5, or other --targets",
            )
        order = {site.name: position for position, site in enumerate(graph.sites)}
        return sorted(rows, key=lambda row: order.get(row.site, len(order)))

    def run(self, graph: Graph, context: Context) -> Outcome:
        rows = {row.site: row for row in self.plan(graph)}
        sites = [site for site in graph.sites if rows[site.name].status == "changed"]
        keeps = self._global_keeps(sites) if self.scope == "global" else {}
        if self.needs_data:
            solved = self._with_data(graph, sites, keeps, context)
        else:
            solved = {site: self._solve(site, None, keeps.get(site)) for site in sites}
        for site, numbers in solved.items():
            rows[site.name] = dataclasses.replace(rows[site.name], numbers=numbers)
        return Outcome(tuple(rows.values()))

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        changed = {row.site: row for row in outcome.of("changed")}
        sites = [site for site in graph.sites if site.name in changed]
        if len(sites) != len(changed):
            raise InternalError(f"sparsify says it changed {sorted(set(changed) - {site.name for site in sites})}")
        for site in sites:
            if isinstance(self._pattern, NM):
                _ensure_groups(site, self._pattern)
        if isinstance(self._pattern, Ratio):
            _ensure_zeros(sites if self.scope == "global" else None, sites, self._pattern.sparsity)

    def _with_data(
        self, graph: Graph, sites: Sequence[WeightSite], keeps: dict[WeightSite, Tensor], context: Context
    ) -> dict[WeightSite, dict[str, float]]:
        batches = context.calibration(self.samples)
        solved: dict[WeightSite, dict[str, float]] = {}
        for segment, statistics in calibrate(graph, sites, batches, seed=context.seed, progress=context.progress):
            for site in segment.sites:
                solved[site] = self._solve(site, statistics[site], keeps.get(site))
        return solved

    def _solve(self, site: WeightSite, statistics: Statistics | None, keep: Tensor | None) -> dict[str, float]:
        """Write the site's pruned weights; returns the numbers of its row."""
        W = site.matrix()  # (groups, m, d)
        if statistics is None:
            keep = torch.stack([by_magnitude(W_g, None, self._pattern)[1] for W_g in W]) if keep is None else keep
            site.write(W * keep)
            return {"sparsity": 1 - keep.float().mean().item()}
        H, x = statistics.gram(), statistics.mean()  # (groups, d, d), (groups, d)
        if self.bias and site.offset:
            H = centre(H, x)
        keeps = [None] * len(W) if keep is None else keep
        V = torch.stack([self._solve_group(*one, statistics.n) for one in zip(W, H, keeps, strict=True)])
        site.write(V)
        if self.bias and site.offset:
            site.offset.add(mean_change(W, V, x).flatten())
        lost = sum(squared_error(V_g, W_g, H_g) for V_g, W_g, H_g in zip(V, W, H, strict=True))
        energy = sum(squared_error(torch.zeros_like(W_g), W_g, H_g) for W_g, H_g in zip(W, H, strict=True))
        return {
            "sparsity": (V == 0).float().mean().item(),
            "rows": float(statistics.n),
            "relative_error": lost / energy if energy else 0.0,
        }

    def _solve_group(self, W: Tensor, H: Tensor, keep: Tensor | None, n: int) -> Tensor:
        """Pruned and refitted W (m, d); n rows made its Gram matrix H (d, d)."""
        H = dampen(H, self.damping or choose_lambda(W.shape[1], n))
        V, keep = METHODS[self.method](W, H, self._pattern) if keep is None else (W * keep, keep)
        return conjugate_gradients(V, keep, W, H, self.refit)

    def _global_keeps(self, sites: Sequence[WeightSite]) -> dict[WeightSite, Tensor]:
        assert isinstance(self._pattern, Ratio)
        scores = [site.matrix().abs() for site in sites]
        return dict(zip(sites, global_ratio_keep(scores, self._pattern.sparsity), strict=True))


def refusal(site: WeightSite, pattern: Pattern) -> str:
    """Why a site cannot take a pattern, or ""."""
    if site.conflict:
        return site.conflict
    if isinstance(pattern, NM) and site.K % pattern.m:
        return f"its contracted axis has length {site.K}, not a multiple of {pattern.m}"
    return ""


def _ensure_groups(site: WeightSite, pattern: NM) -> None:
    W = site.weight.detach().movedim(site.axis, -1)
    good, total = nm_fraction(W, pattern.n, pattern.m)
    if good != total:
        raise InternalError(f"{site.name}: {total - good} of {total} groups along axis {site.axis} break {pattern}")


def _ensure_zeros(together: Sequence[WeightSite] | None, sites: Sequence[WeightSite], sparsity: float) -> None:
    for group in [together] if together else [[site] for site in sites]:
        zeros = sum(int((site.weight == 0).sum()) for site in group)
        size = sum(site.weight.numel() for site in group)
        # Every row may round on its own: half a weight each.
        slack = sum(site.m for site in group) / 2 + 1
        if zeros < sparsity * size - slack:
            raise InternalError(f"{group[0].name}: {zeros} of {size} weights are zero, {sparsity:.0%} were promised")
