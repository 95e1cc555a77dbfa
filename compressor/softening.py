"""Sites that lose most from quantization spared it, those first that hurt most, until the score is within its budget.

A site hurts by what its codes do to the loss of the model before: by the change of its weights, and by the rounding of
what it reads, as the gradients of its outputs on calibration data weigh them (sensitivity.py). How many are spared is
found by halving, on the score itself. Each trial quantizes the model before anew, without the sites that are spared:
ranges, and what is rounded beside them, depend on all sites together.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from compressor.back_off import named
from compressor.errors import RecipeError
from compressor.graph import Feeds, Graph
from compressor.pipeline import Context, Outcome, Row, Softenable, run_pipeline
from compressor.progress import Progress
from compressor.rounded import round_activation
from compressor.sensitivity import SAMPLES, Sensitivity, sensitivities
from compressor.sites import WeightSite
from compressor.watching import watch


@dataclass(frozen=True)
class Softened:
    """A graph, and what the pass says of it."""

    graph: Graph
    outcome: Outcome


def soften(
    first: Softened,
    before: Graph,
    softenable: Softenable,
    context: Context,
    drop: Callable[[Graph], float],
    allowed: float,
    unit: str,
) -> Softened:
    """The graph with as few sites spared as the budget asks for, and the outcome, which then says which.

    first: with none spared. before: what it was made from. drop: how much worse than dense a graph scores, in `unit`.
    """
    lost = drop(first.graph)
    if lost <= allowed:
        return first
    trials = _Trials(first, before, softenable, context, drop)
    n = trials.fewest(allowed)
    made = trials.made(n)
    note = _note(trials, n, lost, drop(made.graph), allowed, unit)
    return Softened(made.graph, _told(made.outcome, list(trials.harms)[:n], softenable.spared, note))


class _Trials:
    """The pass with its most harmful sites spared, as many as one likes. harms: of each site, the largest first."""

    def __init__(
        self,
        first: Softened,
        before: Graph,
        softenable: Softenable,
        context: Context,
        drop: Callable[[Graph], float],
    ):
        self.before, self.softenable, self.context, self.drop = before, softenable, context, drop
        self.harms = _harms(first, before, softenable.spares(first.outcome), context)
        self._last = 0, first

    def made(self, n: int) -> Softened:
        if self._last[0] != n:
            self._last = n, self._make(list(self.harms)[:n])  # one at a time: each holds a model
        return self._last[1]

    def _make(self, names: Sequence[str]) -> Softened:
        graph, softer = self.before.copy(), self.softenable.sparing(names)
        try:
            softer.plan(graph)
        except RecipeError:  # none of its sites is left
            return Softened(graph, Outcome(tuple(Row(name, "left") for name in names)))
        return Softened(graph, run_pipeline(graph, [softer], self.context)[0])

    def fewest(self, allowed: float) -> int:
        """How many must be spared for the drop to be allowed, taken to fall with each; all, if none will do."""
        too_few, enough = 0, len(self.harms)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self.drop(self.made(middle).graph) <= allowed:
                enough = middle
            else:
                too_few = middle
        return enough


# *** which ***


def _harms(first: Softened, before: Graph, names: Collection[str], context: Context) -> dict[str, float]:
    """What each of these sites hurts, those first that hurt most for each weight."""
    batches = context.calibration(SAMPLES)
    whole = {site.name: site for site in before.sites if site.name in names}
    felt = sensitivities(
        before, list(whole.values()), batches,
        seed=context.seed, is_logits=context.is_logits, progress=context.progress,
    )  # fmt: skip
    sites = [site for site in first.graph.sites if site.name in whole]
    rounded = _rounded(first.graph, sites, batches, context.progress)
    shares = {row.site: row.numbers.get("rounding_error") for row in first.outcome.rows}
    found = {
        site.name: _of_weight(site, whole[site.name], felt[whole[site.name]], shares[site.name])
        + _of_activation(site, felt[whole[site.name]], rounded[site])
        for site in sites
    }
    order = sorted(sites, key=lambda site: -found[site.name] / site.weight.numel())
    return {site.name: found[site.name] for site in order}


def _of_weight(site: WeightSite, before: WeightSite, felt: Sensitivity, share: float | None) -> float:
    """Half the squared change of each output, as the loss feels it; share: of the outputs' energy, where it is known.

    Smoothing moves scales between a weight and what it reads, and then weights cannot be compared: the share can.
    """
    W, H = before.matrix(), felt.statistics.gram()  # (groups, m, d), (groups, d, d)
    if share is None:
        return _felt(felt, site.matrix() - W, H)
    return share * _felt(felt, W, H)


def _felt(felt: Sensitivity, D: Tensor, H: Tensor) -> float:
    return float((felt.rows * ((D @ H) * D).sum(2)).sum()) / 2


def _of_activation(site: WeightSite, felt: Sensitivity, error: float) -> float:
    """The same of an error of this mean square in each input, independent of the others."""
    return float((felt.rows * site.matrix().square().sum(2)).sum()) * error / 2


@dataclass
class _Error:
    """The mean square of what rounding changes in a value, over batches."""

    how: tuple[Any, ...]
    total: float = 0.0
    n: int = 0

    def __call__(self, x: Tensor) -> None:
        self.total += float((round_activation(x, *self.how) - x).square().mean())
        self.n += 1

    @property
    def mean(self) -> float:
        return self.total / max(self.n, 1)


def _rounded(
    graph: Graph, sites: Sequence[WeightSite], batches: Sequence[Feeds], progress: Progress
) -> dict[WeightSite, float]:
    """The mean square of the rounding of what each site reads."""
    makers = {site: site.uses[0].activation for site in sites}
    errors = {maker: _Error(tuple(maker.args[1:])) for maker in makers.values()}
    watchers: dict[fx.Node, list[_Error]] = {}
    for maker, error in errors.items():
        watchers.setdefault(maker.args[0], []).append(error)  # type: ignore[arg-type]
    watch(graph, batches, {node: _each(several) for node, several in watchers.items()}, progress)
    return {site: errors[maker].mean for site, maker in makers.items()}


def _each(several: Sequence[_Error]) -> Callable[[Tensor], None]:
    def call(x: Tensor) -> None:
        for one in several:
            one(x)

    return call


# *** what is said of it ***


def _told(outcome: Outcome, names: Collection[str], reason: str, note: str) -> Outcome:
    """Sites that the pass now leaves alone say why; those that it still changes say so in their type."""
    rows = tuple(
        dataclasses.replace(row, reason=f"{reason}: it lost most (--back-off)")
        if row.site in names and row.status == "left"
        else row
        for row in outcome.rows
    )
    return dataclasses.replace(outcome, rows=rows, notes=(*outcome.notes, note))


def _note(trials: _Trials, n: int, before: float, after: float, allowed: float, unit: str) -> str:
    names = named(dict(list(trials.harms.items())[:n]))
    return (
        f"Backed off: {n} of {len(trials.harms)} sites stay {trials.softenable.spared}, those that lost most for each"
        f" weight (in the loss): {names}. Now {after:.2f} {unit} worse than dense, of {allowed:g} allowed, instead of"
        f" {before:.2f}."
    )
