"""How much each site gives under one budget for all of them, by what its zeros do to the loss of the dense model."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.passes.allocate import SHARES, Curve, choose_dense, divide, measure_losses
from compressor.passes.damping import choose_lambda
from compressor.passes.offset import centre
from compressor.pattern import NM, Pattern, Ratio
from compressor.pipeline import Context
from compressor.sensitivity import Sensitivity, sensitivities
from compressor.sites import WeightSite

LEAST = 1e-3
"""What an output costs at least, as a share of the mean one: none is given up altogether."""


@dataclass(frozen=True)
class Weighed:
    """One site's zeros on the scale of the model's loss.

    curve: of shares. asked: of the pattern that was asked for.
    """

    curve: Curve
    asked: float


def feel(
    graph: Graph, sites: Sequence[WeightSite], samples: int, context: Context, *, by_pairs: bool
) -> dict[WeightSite, Sensitivity]:
    """How the model's loss feels each site's outputs, none of them given up altogether; no weight is touched."""
    found = sensitivities(
        graph, sites, context.calibration(samples),
        seed=context.seed, is_logits=context.is_logits, progress=context.progress, by_pairs=by_pairs,
    )  # fmt: skip
    return {site: dataclasses.replace(one, rows=_floored(one.rows)) for site, one in found.items()}


def weigh(felt: Mapping[WeightSite, Sensitivity], pattern: Pattern) -> dict[WeightSite, Weighed]:
    """What each site's zeros cost the dense model, were they the only ones."""
    return {site: _weighed(site, one, pattern) for site, one in felt.items()}


def _weighed(site: WeightSite, felt: Sensitivity, pattern: Pattern) -> Weighed:
    """Over all groups; means are left to a bias where there is one."""
    statistics = felt.statistics
    H = statistics.gram()  # (groups, d, d)
    H = centre(H, statistics.mean()) if site.offset else H
    lam = choose_lambda(site.d, statistics.n)
    groups = list(zip(site.matrix(), H, felt.rows, strict=True))

    def total(patterns: Sequence[Pattern]) -> list[float]:
        return [sum(losses) for losses in zip(*(measure_losses(*g, lam, patterns) for g in groups), strict=True)]

    return Weighed(Curve(site.weight.numel(), tuple(total([*map(Ratio, SHARES)]))), *total([pattern]))


def _floored(rows: Tensor) -> Tensor:
    mean = float(rows.mean())
    return rows.clamp_min(LEAST * mean) if mean > 0 else torch.ones_like(rows)


def divided(weighed: Mapping[WeightSite, Weighed], share: float) -> dict[WeightSite, Pattern]:
    """A share of all weights, divided so that the loss rises least."""
    taken = divide([one.curve for one in weighed.values()], share)
    return {site: Ratio(min(max(part, 1e-6), SHARES[-1])) for site, part in zip(weighed, taken, strict=True)}


def within_budget(weighed: Mapping[WeightSite, Weighed], pattern: NM, dense: float) -> dict[WeightSite, Pattern]:
    """The pattern for all sites but those that stay dense: a share of all weights, where the pattern costs most."""
    losses = [one.asked for one in weighed.values()]
    stays = choose_dense([site.weight.numel() for site in weighed], losses, dense)
    return {site: pattern for site, is_dense in zip(weighed, stays, strict=True) if not is_dense}


def check_budget(sites: Sequence[WeightSite], dense: float) -> None:
    """Raise RecipeError when no site fits into the share of weights that may stay dense."""
    sizes = {site.name: site.weight.numel() for site in sites}
    least = min(sizes, key=sizes.__getitem__)
    share = sizes[least] / sum(sizes.values())
    if share > dense:
        raise RecipeError(
            f"no weight fits into dense={dense}",
            found=f"the smallest, {least}, is {share:.1%} of those that are named",
            hint=f"--dense {share + 0.001:.3f}, or no --dense",
        )
