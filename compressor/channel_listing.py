"""Channel groups as stable text, one line for each slice."""

from collections.abc import Iterable

from compressor.channels import ChannelGroup, Slice


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
