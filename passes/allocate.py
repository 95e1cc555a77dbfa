"""One share of zeros divided among matrices so that the loss rises least. Arrays only.

For each matrix a curve tells what removing more and more of it costs. Of all ways to remove as much in total, the
cheapest removes everywhere up to the same slope, where curves are convex; of others the convex hull is followed.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from compressor.passes.damping import dampen
from compressor.passes.masks import nm_keep, ratio_keep
from compressor.passes.refit import conjugate_gradients, squared_error
from compressor.pattern import NM, Pattern

SHARES = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Where a curve is measured. No more than the last is ever removed from a matrix."""

STEPS = 3
"""Conjugate-gradient steps at each of them: a curve is to be cheap, and right up to a common factor."""

GRID = 200
"""Points on a whole curve, between which it is straight."""

TINY = 1e-300
"""The least loss that has a logarithm."""


@dataclass(frozen=True)
class Curve:
    """size: weights of a matrix. losses: what removing each of SHARES costs, in any unit common to all curves."""

    size: int
    losses: tuple[float, ...]

    def at(self, share: float) -> float:
        """The loss in between: a power of the share from each to the next, and its square below the first."""
        if share <= SHARES[0]:
            return self.losses[0] * (share / SHARES[0]) ** 2
        right = min(bisect_left(SHARES, share), len(SHARES) - 1)
        (x0, y0), (x1, y1) = ((math.log(SHARES[i]), math.log(max(self.losses[i], TINY))) for i in (right - 1, right))
        return math.exp(y0 + (math.log(share) - x0) / (x1 - x0) * (y1 - y0))


def measure_losses(W: Tensor, H: Tensor, rows: Tensor, lam: float, patterns: Sequence[Pattern]) -> list[float]:
    """What each pattern of the weights W (m, d) costs, refitted, for inputs of Gram matrix H (d, d).

    rows: how much a squared change of each output costs (m,). lam: damping. What goes first is what Wanda ranks lowest.
    Each pattern starts from the one before it.
    """
    damped = dampen(H, lam)
    B = W * rows.sqrt()[:, None]  # (m, d) changes of its outputs cost the same in every row
    score = B.abs() * damped.diagonal().sqrt()
    V, losses = B, []
    for one in patterns:
        keep = nm_keep(score, one.n, one.m) if isinstance(one, NM) else ratio_keep(score, one.sparsity)
        V = conjugate_gradients(V, keep, B, damped, STEPS)
        losses.append(squared_error(V, B, H) / 2)
    return losses


def choose_dense(sizes: Sequence[int], losses: Sequence[float], share: float) -> list[bool]:
    """Which matrices stay dense: those that cost most for each weight, while they fit into a share of all."""
    left, chosen = share * sum(sizes), [False] * len(sizes)
    for at in sorted(range(len(sizes)), key=lambda at: (-losses[at] / sizes[at], at)):
        if sizes[at] <= left:
            left -= sizes[at]
            chosen[at] = True
    return chosen


def divide(curves: Sequence[Curve], share: float) -> list[float]:
    """The share that each matrix loses, so that all together lose `share` and the sum of losses is least.

    Raises ValueError when that takes more of a matrix than SHARES go to.
    """
    if not 0 <= share <= SHARES[-1]:
        raise ValueError(f"cannot remove {share:.0%}: curves end at {SHARES[-1]:.0%}")
    left = share * sum(curve.size for curve in curves)
    taken = [0.0] * len(curves)
    for _, at, step in sorted(_steps(curves)):
        part = min(step, left / curves[at].size)
        taken[at] += part
        left -= part * curves[at].size
    return taken


def _steps(curves: Sequence[Curve]) -> list[tuple[float, int, float]]:
    """(loss per weight, which matrix, share) of every straight piece of every curve's lower convex hull."""
    return [
        ((y1 - y0) / ((x1 - x0) * curve.size), at, x1 - x0)
        for at, curve in enumerate(curves)
        for (x0, y0), (x1, y1) in pairwise(_hull(curve))
    ]


def _hull(curve: Curve) -> list[tuple[float, float]]:
    """The lower convex hull of a curve from (0, 0) on (Andrew 1979)."""
    hull: list[tuple[float, float]] = []
    for i in range(GRID + 1):
        point = (SHARES[-1] * i / GRID, curve.at(SHARES[-1] * i / GRID))
        while len(hull) > 1 and _turns_down(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
