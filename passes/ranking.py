"""Which units stay: scores of many groups against what is to be removed. Arrays only.

    layer        each group loses its share
    isomorphic   groups of the same structure are ranked together, and lose the share together (Fang et al. 2024)
    global       all groups are ranked together

Ranked together, a unit is worth its score for what it costs, and no group falls below a tenth of its units.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYER, ISOMORPHIC, GLOBAL = RANKINGS = ("layer", "isomorphic", "global")
LEAST = 0.1
"""Of the units of a group that is ranked with others, the share that stays whatever the scores say."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """One group about to lose units.

    scores (units,): higher stays; comparable over groups that are ranked together. share: of the units, to be removed.
    cost: of one unit. like: equal for groups of the same structure. step: units come and go by so many.
    """

    scores: Tensor
    share: float
    cost: float = 1.0
    like: Hashable = None
    step: int = 1

    @property
    def units(self) -> int:
        return len(self.scores)

    def keeping(self, n: float) -> Tensor:
        """(units,) bool: the n best units, n being brought to the nearest step."""
        n = min(self.units, self.step * math.floor(n / self.step + 0.5))
        keep = torch.zeros(self.units, dtype=torch.bool)
        keep[self.scores.argsort(descending=True, stable=True)[:n]] = True
        return keep


def choose_units(groups: Sequence[Ranked], ranking: str) -> list[Tensor]:
    """What stays of each group (units,). With "layer" a group may end up empty, which is for the caller to refuse."""
    if ranking == LAYER:
        return [one.keeping(one.units * (1 - one.share)) for one in groups]
    sets: dict[Hashable, list[int]] = {}
    for at, one in enumerate(groups):
        sets.setdefault(one.like if ranking == ISOMORPHIC else None, []).append(at)
    counts: dict[int, float] = {}
    for members in sets.values():
        counts |= dict(zip(members, _together([groups[at] for at in members]), strict=True))
    return [one.keeping(counts[at]) for at, one in enumerate(groups)]


def _together(groups: Sequence[Ranked]) -> list[float]:
    """How many units each group keeps when the cheapest of all go, until what they cost is the share of the whole."""
    left = [float(one.units) for one in groups]
    least = [max(one.step, math.ceil(LEAST * one.units)) for one in groups]
    goal = sum(one.share * one.cost * one.units for one in groups)
    worth = torch.cat([one.scores.double() / one.cost for one in groups])
    owner = torch.cat([torch.full((one.units,), at) for at, one in enumerate(groups)])
    gone = 0.0
    for at in owner[worth.argsort(stable=True)].tolist():
        cost = groups[at].cost
        if gone + cost / 2 > goal:
            break
        if left[at] > least[at]:
            left[at] -= 1
            gone += cost
    return left


def least_share(measure: Callable[[float], float | None], goal: float, steps: int = 8) -> float | None:
    """The least share of the units whose removal brings `measure` down to `goal`; None when none below 1 does.

    measure: what is left, as a share of what was, when a share of the units goes; it falls, if not smoothly; None
    where the share is too large for any model to be left. Halved `steps` times, between nothing and everything.
    """
    low, high = 0.0, 1.0
    found = None
    for _ in range(steps):
        middle = (low + high) / 2
        left = measure(middle)
        if left is None:
            high = middle
        elif left <= goal:
            found = high = middle
        else:
            low = middle
    return found
