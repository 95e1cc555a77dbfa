"""Units of a graph put into another order: the graph computes the same, and its weights lie differently.

Where groups of neighbours are to be sparse (2:4), it matters who the neighbours are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup, Slice, find_groups, unknown_group
from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.stored import stored

Order = Mapping[str, Tensor]  # a group's name -> (units,) int64: which unit comes first, second, ...


def permute(graph: Graph, order: Order) -> None:
    """Give the units of some groups another order, in place: weights, what follows them, and their consumers' columns.

    A state (a key-value cache) has its heads in the new order. Raises RecipeError when a group is unknown or cannot
    change its order (`why_fixed`), or when what is given is none; then nothing was changed.
    """
    groups = {group.name: group for group in find_groups(graph)}
    for name, one in order.items():
        if name not in groups:
            raise unknown_group(name, groups)
        _check(graph, groups[name], one)
    for name, one in order.items():
        for part in groups[name].slices:
            if not part.is_state:
                _move(stored(graph.module, part.name), part.axis, _positions(part, one.cpu()))


def why_fixed(graph: Graph, group: ChannelGroup) -> str:
    """Why the units of a group cannot change their order, or ""."""
    if group.ordered:
        return group.ordered
    kept = {*dict(graph.module.named_parameters()), *dict(graph.module.named_buffers())}
    for one in group.slices:
        if len(one.owner[one.owner >= 0].unique(return_counts=True)[1].unique()) > 1:
            return f"units of several sizes in {one.name}"
        if not one.is_state and one.name not in kept:
            return f"the graph spells out a value for each of them ({one.name})"
    return ""


def _check(graph: Graph, group: ChannelGroup, order: Tensor) -> None:
    if not torch.equal(order.cpu().sort().values, torch.arange(group.units)):
        raise RecipeError(f"this is no order of the {group.units} units of {group.name}", found=str(order.tolist()[:8]))
    if why := why_fixed(graph, group):
        raise RecipeError(f"{group.name} cannot change its order", found=why, hint="another group")


def _move(tensor: Tensor, axis: int, positions: Tensor) -> None:
    """In place, so that every name, site and capture that shares the tensor sees it."""
    with torch.no_grad():
        tensor.copy_(tensor.index_select(axis, positions.to(tensor.device)))


def _positions(part: Slice, order: Tensor) -> Tensor:
    """(length of the axis,) int64: what comes to stand at each position."""
    own = part.owner.argsort(stable=True)[int((part.owner < 0).sum()) :].reshape(len(order), -1)  # (units, size)
    index = torch.arange(len(part.owner))
    index[own] = own[order]
    return index
