"""How much each site gives under one share for all of them, by what its zeros do to the loss of the dense model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.graph import Graph
from compressor.passes.allocate import SHARES, Curve, divide, measure_curve
from compressor.passes.damping import choose_lambda
from compressor.passes.offset import centre
from compressor.pattern import Ratio
from compressor.pipeline import Context
from compressor.sensitivity import Sensitivity, sensitivities
from compressor.sites import WeightSite

LEAST = 1e-6
"""What an output costs at least, as a share of the mean one: none is given up altogether."""


@dataclass(frozen=True)
class Shares:
    """What each site is to lose, and what a change of each of its outputs costs: rows (groups, m)."""

    patterns: Mapping[WeightSite, Ratio]
    rows: Mapping[WeightSite, Tensor]
    curves: Mapping[WeightSite, Curve]

    def loss(self, site: WeightSite) -> float:
        """Foretold for the site alone, in the units of the model's loss."""
        return self.curves[site].at(self.patterns[site].sparsity)


def divided(graph: Graph, sites: Sequence[WeightSite], share: float, samples: int, context: Context) -> Shares:
    """Divide a share of the sites' weights among them, so that the loss rises least."""
    found = sensitivities(
        graph, sites, context.calibration(samples),
        seed=context.seed, is_logits=context.is_logits, progress=context.progress,
    )  # fmt: skip
    rows = {site: _floored(one.rows) for site, one in found.items()}
    curves = {site: curve_of(site, one, rows[site]) for site, one in found.items()}
    taken = divide(list(curves.values()), share)
    patterns = {site: Ratio(min(max(one, 1e-6), SHARES[-1])) for site, one in zip(curves, taken, strict=True)}
    return Shares(patterns, rows, curves)


def curve_of(site: WeightSite, felt: Sensitivity, rows: Tensor) -> Curve:
    """What removing more and more of a site costs, over all its groups; means are left to a bias where there is one."""
    statistics = felt.statistics
    H = statistics.gram()  # (groups, d, d)
    H = centre(H, statistics.mean()) if site.offset else H
    lam = choose_lambda(site.d, statistics.n)
    parts = [measure_curve(W_g, H_g, rows_g, lam) for W_g, H_g, rows_g in zip(site.matrix(), H, rows, strict=True)]
    losses = torch.tensor([part.losses for part in parts], dtype=torch.float64).sum(0)
    return Curve(sum(part.size for part in parts), tuple(losses.tolist()))


def _floored(rows: Tensor) -> Tensor:
    mean = rows.mean()
    return rows.clamp_min(LEAST * float(mean)) if mean > 0 else torch.ones_like(rows)
