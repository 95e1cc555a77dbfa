"""The pass `channels`: whole channels, heads and hidden units go, and what reads the others is refitted."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from compressor.channels.cut import cut, mask
from compressor.channels.groups import ChannelGroup, find_groups
from compressor.errors import InternalError, RecipeError
from compressor.graph import Feeds, Graph
from compressor.passes import batchnorm
from compressor.passes.amounts import HINT, Amounts
from compressor.passes.blockwise import effort, holds_out, solve_blocks
from compressor.passes.columns import ColumnSolver, columns_kept, readers
from compressor.passes.extents import Keep, shapes_after
from compressor.passes.importance import ERROR, IMPORTANCES, MAGNITUDE, Scores, by_data, by_magnitude
from compressor.passes.ranking import LAYER, RANKINGS
from compressor.passes.selection import CHANNELS, TARGETS, Selection
from compressor.passes.solve import Numbers
from compressor.passes.student import own_tensors
from compressor.pipeline import Context, Effort, Outcome, Row, check_glob, in_order, matches
from compressor.proof.parity import TOLERANCE, difference
from compressor.registry import unknown
from compressor.sites import WeightSite

MATCHES = ("pruned", "dense", "auto")


@dataclass(frozen=True)
class Removed(Outcome):
    """shapes: of every parameter and buffer as it should now be. expected: outputs on the example, by name, of the
    graph with the removed units masked."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    expected: Feeds = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Channels:
    """Remove the least important units of channel groups, and refit by least squares what reads the others.

    amount: shares of the units to remove: "0.5" of every kind, or "mlp=0.5,heads=0.25".
    target: what the share is one of: "channels", or of all "parameters" or "flops", or of the measured "latency"; then
        the least share of the channels that comes to it is searched for, and is the same for every kind.
    importance: how units are scored. "magnitude": sums of squares; "activation": energies at the layers that read them;
        "error": what is lost there after a refit, taking into account what went before.
    ranking: "layer": each group loses its share; "isomorphic": groups of the same structure do together; "global": all
        groups do together.
    round_to: channels are kept in multiples of it.
    refit: whether what reads the units that stay makes up for those that go.
    bias: whether biases, or running means, take part in that.
    match: what outputs are fitted to: "pruned", "dense" or "auto", as in `sparsify`.
    batchnorm, reconstruct, damping: as in `sparsify`.
    samples: how many calibration samples are used.
    targets, ignore: globs over the names of groups, each named by the first weight that makes its channels.
    """

    name: ClassVar[str] = "channels"
    needs_dense: ClassVar[bool] = False
    without_data: ClassVar[str] = "--channels-importance magnitude --no-channels-refit"

    amount: str
    target: str = CHANNELS
    importance: str = ERROR
    ranking: str = LAYER
    round_to: int = 1
    refit: bool = True
    bias: bool = True
    match: str = "pruned"
    batchnorm: bool = False
    reconstruct: int = 0
    damping: float = 0.0
    samples: int = 128
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", str(Amounts.parse(self.amount)))
        known = {"target": TARGETS, "importance": IMPORTANCES, "ranking": RANKINGS, "match": MATCHES}
        for option, values in known.items():
            if getattr(self, option) not in values:
                raise unknown(option, getattr(self, option), values)
        if self.target != CHANNELS and self._amounts.of_all is None:
            raise RecipeError(
                f"a target in {self.target} takes one share of the whole", found=self.amount, hint="--channels 0.5"
            )
        if min(self.damping, self.reconstruct) < 0 or min(self.samples, self.round_to) < 1:
            raise RecipeError("damping and reconstruct cannot be negative, and samples and round_to must be at least 1")

    @property
    def _amounts(self) -> Amounts:
        return Amounts.parse(self.amount)

    @property
    def needs_data(self) -> bool:
        """Magnitude without refit reads the weights alone."""
        return self.importance != MAGNITUDE or self.refit or holds_out(self)

    # *** what goes ***

    def effort(self, graph: Graph) -> Effort:
        return effort(self, graph, observed=self.samples if self.importance != MAGNITUDE else 0)

    def plan(self, graph: Graph) -> list[Row]:
        groups, whole = self._choose(graph)
        if self.target == CHANNELS and self.ranking == LAYER:
            scores = {group.name: torch.zeros(group.units) for group in groups}
            return self._rows(graph, self._selection(graph, groups, scores).keep(), whole)
        keep = {group.name: group.all_kept() for group in groups}  # how many go is known when they are ranked
        return self._rows(graph, keep, whole)

    def _choose(self, graph: Graph) -> tuple[list[ChannelGroup], dict[str, Row]]:
        """The groups that lose units, and for each other one a row that says why not. Raises RecipeError."""
        groups = find_groups(graph)
        for glob in (*self.targets, *self.ignore):
            check_glob(glob, [group.name for group in groups], "group of channels")
        whole = {group.name: row for group in groups if (row := self._why_whole(group))}
        chosen = [group for group in groups if group.name not in whole]
        if not chosen:
            reasons = sorted({f"{row.reason} ({name})" for name, row in whole.items()})
            raise RecipeError(
                "no channels of this model can be removed", found="; ".join(reasons[:4]) or "none", hint=HINT
            )
        return chosen, whole

    def _why_whole(self, group: ChannelGroup) -> Row | None:
        """Why a group loses nothing; None when it does."""
        if any(matches(group.name, glob) for glob in self.ignore):
            return Row(group.name, "left", "ignored by request")
        naming = [glob for glob in self.targets if matches(group.name, glob)]
        if not naming:
            return Row(group.name, "left", "not among the targets")
        if not self._amounts.of(group.kind):
            return Row(group.name, "left", f"its channels ({group.kind}) are not among {self.amount}")
        if group.frozen:
            is_named = self._amounts.names(group.kind) or set(naming) != {"*"}
            return Row(group.name, "refused" if is_named else "left", group.frozen)
        return None

    def _selection(self, graph: Graph, groups: Sequence[ChannelGroup], scores: Scores) -> Selection:
        shares = {group.name: self._amounts.of(group.kind) for group in groups}
        return Selection(graph, groups, scores, shares, self.ranking, self.round_to)

    # *** doing it ***

    def run(self, graph: Graph, context: Context) -> Outcome:
        groups, whole = self._choose(graph)
        selection = self._selection(graph, groups, self._scores(graph, groups, context))
        keep, notes = selection.found(self.target, 1 - (self._amounts.of_all or 0), context)
        rows = {row.site: row for row in self._rows(graph, keep, whole)}
        solved = self._refit(graph, groups, keep, context)
        for site, numbers in solved.items():
            rows[site.name] = dataclasses.replace(rows[site.name], numbers=numbers)
        notes = (*notes, batchnorm.said(solved.values())) if self.batchnorm else notes
        shapes = shapes_after(graph, groups, keep)
        mask(graph, keep)
        expected = graph.run(graph.example)
        cut(graph, keep)
        return Removed(tuple(rows.values()), notes=notes, shapes=shapes, expected=expected)

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        assert isinstance(outcome, Removed)
        now = {name: tuple(x.shape) for name, x in own_tensors(graph).items()}
        for name, shape in outcome.shapes.items():
            if name in now and now[name] != shape:
                raise InternalError(f"{name} is {now[name]} after channels were removed, and should be {shape}")
        scored = {graph.outputs[0].name}  # caches have lost heads
        gap = difference(lambda _: dict(outcome.expected), lambda _: graph.run(graph.example), {}, scored)
        if not gap <= TOLERANCE["float32"]:
            raise InternalError(f"the smaller graph does not compute what the masked one did: {gap:.1e} off")

    def _scores(self, graph: Graph, groups: Sequence[ChannelGroup], context: Context) -> Scores:
        if self.importance == MAGNITUDE:
            return by_magnitude(graph, groups)
        return by_data(
            graph, groups, self.importance, context, samples=self.samples, damping=self.damping, bias=self.bias
        )

    def _refit(
        self, graph: Graph, groups: Sequence[ChannelGroup], keep: Keep, context: Context
    ) -> dict[WeightSite, Numbers]:
        """Write what reads the groups, block after block; returns the numbers of the rows."""
        if not (self.refit or self.batchnorm or self.reconstruct):
            return {}
        columns = {site: columns_kept(each, keep) for site, each in readers(graph, groups).items()}
        solver = ColumnSolver(options=self, patterns={}, keeps={}, columns=columns, is_refitted=self.refit)
        solved = solve_blocks(graph, list(columns), solver, context)
        return {site: {name: x for name, x in one.items() if name != "sparsity"} for site, one in solved.items()}

    # *** what is said of it ***

    def _rows(self, graph: Graph, keep: Keep, whole: Mapping[str, Row]) -> list[Row]:
        """A row for each site: its shape before and after, or why it stays whole."""
        groups = find_groups(graph)
        after = shapes_after(graph, groups, keep)
        unranked = Row("", "left", "none of its units go at this share")
        reasons, smaller = dict[int, Row](), set[int]()  # by tensor, since tied ones have several names
        tensors = own_tensors(graph)
        for group in reversed(groups):
            owned = [id(tensors[one.name]) for one in group.slices if not one.is_state]
            if group.name in keep:
                smaller.update(owned)
            else:
                reasons |= dict.fromkeys(owned, whole.get(group.name, unranked))
        rows = [_row(site, after, smaller, reasons.get(id(site.weight))) for site in graph.sites]
        return in_order(rows, graph, "no channels of this model can be removed", HINT)


def _row(site: WeightSite, after: Mapping[str, tuple[int, ...]], smaller: set[int], reason: Row | None) -> Row:
    if id(site.weight) in smaller:
        shapes = site.shape, after.get(site.name, site.shape)
        return Row(site.name, "changed", shapes=shapes if len(set(shapes)) > 1 else None)
    if reason is None:
        return Row(site.name, "left", "none of its channels form a group")
    return dataclasses.replace(reason, site=site.name)
