"""Channel groups as stable text, one line for each slice, and as records."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from compressor.channels.groups import ChannelGroup, Slice, find_groups
from compressor.graph import Graph
from compressor.stored import stored


@dataclass(frozen=True)
class GroupRecord:
    """A channel group as `compress inspect --channels` shows it.

    weights: how many go with one unit. tensors: what loses channels, as `NAME axis N`.
    frozen: why none can be removed, or "".
    """

    name: str
    kind: str
    units: int
    weights: int
    tensors: tuple[str, ...]
    frozen: str = ""


def group_records(graph: Graph) -> tuple[GroupRecord, ...]:
    """Every channel group of a graph. Raises SourceError when a shape depends on data."""
    return tuple(_record(graph, group) for group in find_groups(graph))


def _record(graph: Graph, group: ChannelGroup) -> GroupRecord:
    shapes = {one.name: stored(graph.module, one.name).shape for one in group.slices if not one.is_state}
    weights = sum(
        int((one.owner == 0).sum()) * math.prod(shapes[one.name]) // shapes[one.name][one.axis]
        for one in group.slices
        if not one.is_state
    )
    tensors = tuple(f"{one.name} axis {one.axis}" for one in group.slices)
    return GroupRecord(group.name, group.kind, group.units, weights, tensors, group.frozen)


def listing(groups: Iterable[ChannelGroup]) -> str:
    """Every group with its slices: tensor, axis, positions a unit, role."""
    return "\n".join(
        line for group in groups for line in (_head(group), *(f"  {_line(group, s)}" for s in group.slices))
    )


def _head(group: ChannelGroup) -> str:
    frozen = f", frozen: {group.frozen}" if group.frozen else ""
    return f"{group.name}: {group.kind}, {group.units} units{frozen}"


def _line(group: ChannelGroup, one: Slice) -> str:
    counts = {int((one.owner == unit).sum()) for unit in range(min(group.units, 64))}
    each = "/".join(map(str, sorted(counts)))
    return f"{one.role} {each} of {one.name} axis {one.axis}" + (" (state)" if one.is_state else "")
