"""Sites made dense again, those first that hurt most for each weight, until the score is within its budget.

What a site hurts is what the change of its weights does to the loss of the dense model, by gradients on calibration
data (sensitivity.py). How many are made dense is found by halving, on the score itself.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.pipeline import Context, Outcome, Softenable
from compressor.recipe import Recipe
from compressor.sensitivity import SAMPLES, Sensitivity, sensitivities
from compressor.sites import WeightSite

SHOWN = 6
"""Sites that a note names."""


def check_back_off(recipe: Recipe) -> None:
    """Raise RecipeError when there is no budget to back off to, or nothing that can be made dense again."""
    if not recipe.back_off:
        return
    if recipe.max_drop is None:
        raise RecipeError("back_off needs a budget to keep to", hint="--max-drop 1% --back-off")
    passes = [one.name for one in recipe.passes]
    if passes != ["sparsify"] and not (passes and isinstance(recipe.passes[-1], Softenable)):
        raise RecipeError(
            f"back_off cannot undo {' and '.join(passes) or 'nothing'}",
            found="it undoes what sparsify did alone, or what quantize did last",
            hint="--sparsity 2:4 --max-drop 1% --back-off, or --quantize int8 --max-drop 1% --back-off",
        )


def back_off(
    graph: Graph,
    dense: Graph,
    outcomes: Sequence[Outcome],
    context: Context,
    drop: Callable[[], float],
    allowed: float,
    unit: str,
) -> list[Outcome]:
    """Make as few sites dense again as the budget asks for; returns the outcomes, which then say which.

    dense: the graph before it was pruned. drop: how much worse than it the graph scores as it stands, in `unit`.
    """
    before = drop()
    if before <= allowed:
        return list(outcomes)
    order = _most_harmful_first(graph, dense, outcomes, context)
    n = _fewest(order, drop, allowed)
    _restore(order, n)
    restored = {one.site.name: one.harm for one in order[:n]}
    note = _note(restored, len(order), before, drop(), allowed, unit)
    return [_told(one, restored, note if one is outcomes[-1] else "") for one in outcomes]


# *** which ***


@dataclass(frozen=True)
class _Pruned:
    """A site that was pruned: what it hurts, and its tensors (weight, bias) pruned and dense."""

    site: WeightSite
    harm: float
    tensors: tuple[Tensor, ...]
    pruned: tuple[Tensor, ...]
    dense: tuple[Tensor, ...]


def _most_harmful_first(graph: Graph, dense: Graph, outcomes: Sequence[Outcome], context: Context) -> list[_Pruned]:
    changed = {row.site for one in outcomes for row in one.of("changed")}
    before = {site.name: site for site in dense.sites if site.name in changed}
    felt = sensitivities(
        dense, list(before.values()), context.calibration(SAMPLES),
        seed=context.seed, is_logits=context.is_logits, progress=context.progress,
    )  # fmt: skip
    found = [
        _Pruned(
            site,
            _harm(site, before[site.name], felt[before[site.name]]),
            _tensors(site),
            tuple(x.detach().clone() for x in _tensors(site)),
            tuple(x.detach() for x in _tensors(before[site.name])),
        )
        for site in graph.sites
        if site.name in before
    ]
    return sorted(found, key=lambda one: -one.harm / one.site.weight.numel())


def _tensors(site: WeightSite) -> tuple[Tensor, ...]:
    return (site.weight, site.offset.tensor) if site.offset else (site.weight,)


def _harm(site: WeightSite, dense: WeightSite, felt: Sensitivity) -> float:
    """Half the squared change of each output on dense inputs, as the loss feels it; a bias counts."""
    D = site.matrix() - dense.matrix()  # (groups, m, d)
    b = torch.zeros(D.shape[:2])
    if site.offset and dense.offset:
        b = (site.offset.sign * (site.offset.tensor - dense.offset.tensor)).detach().float().view(b.shape)
    H, x = felt.statistics.gram(), felt.statistics.mean()  # (groups, d, d), (groups, d)
    change = ((D @ H) * D).sum(2) + 2 * b * torch.einsum("gmd,gd->gm", D, x) + b.square()
    return float((felt.rows * change).sum()) / 2


# *** how many ***


def _fewest(order: Sequence[_Pruned], drop: Callable[[], float], allowed: float) -> int:
    """How many of the first must be dense for the drop to be allowed, taken to fall with each; all, if none will do."""
    too_few, enough = 0, len(order)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        _restore(order, middle)
        if drop() <= allowed:
            enough = middle
        else:
            too_few = middle
    return enough


def _restore(order: Sequence[_Pruned], n: int) -> None:
    """Make the first n dense, and the others as they were pruned."""
    with torch.no_grad():
        for at, one in enumerate(order):
            for x, value in zip(one.tensors, one.dense if at < n else one.pruned, strict=True):
                x.copy_(value)


# *** what is said of it ***


def _told(outcome: Outcome, restored: Mapping[str, float], note: str) -> Outcome:
    rows = tuple(
        dataclasses.replace(row, status="left", asked="", numbers={}, reason="dense again: it hurt most (--back-off)")
        if row.site in restored and row.status == "changed"
        else row
        for row in outcome.rows
    )
    return dataclasses.replace(outcome, rows=rows, notes=(*outcome.notes, *filter(None, [note])))


def _note(restored: Mapping[str, float], n: int, before: float, after: float, allowed: float, unit: str) -> str:
    return (
        f"Backed off: {len(restored)} of {n} sites are dense again, those that hurt most for each weight (in the loss):"
        f" {named(restored)}. Now {after:.2f} {unit} worse than dense, of {allowed:g} allowed,"
        f" instead of {before:.2f}."
    )


def named(harms: Mapping[str, float]) -> str:
    """The first of some sites, each with what it hurts, and how many more there are."""
    first = [f"{name.removesuffix('.weight')} ({harm:.1e})" for name, harm in list(harms.items())[:SHOWN]]
    return ", ".join(first) + (f" and {len(harms) - SHOWN} more" if len(harms) > SHOWN else "")
