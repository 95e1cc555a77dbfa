"""Which units of which groups stay: by shares, or by a search for a goal in parameters, FLOPs or time."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from compressor.calibrate import measure
from compressor.channels.cut import cut
from compressor.channels.groups import ChannelGroup
from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.passes.extents import Keep, parameters_after, per_unit
from compressor.passes.ranking import Ranked, choose_units, least_share
from compressor.pipeline import Context
from compressor.proof.costs import costs

CHANNELS, PARAMETERS, FLOPS, LATENCY = TARGETS = ("channels", "parameters", "flops", "latency")


@dataclass(frozen=True)
class Selection:
    """Scored groups about to lose units.

    scores (units,), shares: of the units to remove; by group. ranking, round_to: as the pass has them.
    """

    graph: Graph
    groups: Sequence[ChannelGroup]
    scores: Mapping[str, Tensor]
    shares: Mapping[str, float]
    ranking: str
    round_to: int

    def keep(self, share: float | None = None, target: str = CHANNELS) -> Keep:
        """What each group keeps, those that lose nothing left out; share: of all groups in place of their own.

        Raises RecipeError when a group would be left without units.
        """
        shares = self.shares if share is None else dict.fromkeys(self.shares, share)
        ranked = [self._ranked(group, shares[group.name], target) for group in self.groups]
        found = dict(zip((group.name for group in self.groups), choose_units(ranked, self.ranking), strict=True))
        for group in self.groups:
            if not found[group.name].any():
                raise _emptied(group, self.round_to)
        return {name: keep for name, keep in found.items() if not keep.all()}

    def _ranked(self, group: ChannelGroup, share: float, target: str) -> Ranked:
        cost = 1.0 if target == CHANNELS else per_unit(self.graph, group, self._rows if target != PARAMETERS else None)
        step = self.round_to // math.gcd(self.round_to, _channels_per_unit(group))
        return Ranked(self.scores[group.name], share, cost, _structure(self.graph, group), min(step, group.units))

    @cached_property
    def _rows(self) -> dict[int, float]:
        """How often each weight is multiplied by in a call on the example, by its identity."""
        rows = measure(self.graph, self.graph.sites, self.graph.example).rows
        return {id(site.weight): float(n) for site, n in rows.items()}

    def found(self, target: str, goal: float, context: Context) -> tuple[Keep, tuple[str, ...]]:
        """The choice by shares of channels, or the one that brings another target down to a goal, and notes on it."""
        return (self.keep(), ()) if target == CHANNELS else self._search(target, goal, context)

    def _search(self, target: str, goal: float, context: Context) -> tuple[Keep, tuple[str, ...]]:
        """The choice that removes the least and brings a target down to a share of the dense model's, and a note on it.

        Raises RecipeError when none does.
        """
        measure = self._measure(target, context)
        whole = measure({})

        def left(share: float) -> float | None:
            try:
                return measure(self.keep(share, target)) / whole
            except RecipeError:  # it empties a group
                return None

        share = least_share(left, goal)
        if share is None:
            raise RecipeError(
                f"no share of these channels brings the {target} down to {goal:.0%}",
                found=f"{len(self.groups)} groups that can lose channels",
                hint="a smaller --channels, or more --depth",
            )
        keep = self.keep(share, target)
        left_over = f"{measure(keep) / whole:.1%} of the {target}"
        return keep, (f"channels: {share:.1%} of the channels go, which leaves {left_over}",)

    def _measure(self, target: str, context: Context) -> Callable[[Keep], float]:
        if target == PARAMETERS:
            return lambda keep: parameters_after(self.graph, self.groups, keep)
        if target == FLOPS:
            return lambda keep: self._on_smaller(keep, lambda graph: costs(graph, graph.example).flops)
        latency = context.latency
        if latency is None:
            raise RecipeError("nothing measures latency here", hint="--channels-target flops")
        return lambda keep: self._on_smaller(keep, latency)

    def _on_smaller(self, keep: Keep, measure: Callable[[Graph], float]) -> float:
        smaller = self.graph.copy()
        cut(smaller, keep)
        return measure(smaller)


def _emptied(group: ChannelGroup, round_to: int) -> RecipeError:
    rounded = f", rounded to multiples of {round_to}" if round_to > 1 else ""
    return RecipeError(
        f"removing that many channels empties {group.name}",
        found=f"none of its {group.units} units would stay{rounded}",
        hint=f"a smaller share for {group.kind}, or --channels-ignore {group.name}",
    )


def _channels_per_unit(group: ChannelGroup) -> int:
    """How many positions of its first producer's axis a unit owns."""
    first = group.producers[0]
    return max(1, int((first.owner >= 0).sum()) // group.units)


def _structure(graph: Graph, group: ChannelGroup) -> Hashable:
    """Equal for groups that own the same axes of tensors of the same shapes, whatever these are called."""
    shapes = {name: tuple(x.shape) for name, x in graph.module.named_parameters()}
    owned = sorted((shapes.get(one.name, (len(one.owner),)), one.axis, one.role) for one in group.slices)
    return (group.kind, group.units, tuple(owned))
