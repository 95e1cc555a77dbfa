"""Units of a graph put into another order: the graph computes the same, and its weights lie differently.

Where groups of neighbours are to be sparse (2:4), it matters who the neighbours are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup, Slice, find_orders, unknown_group
from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.stored import stored

Order = Mapping[str, Tensor]  # a group's name -> (units,) int64: which unit comes first, second, ...


def permute(graph: Graph, order: Order) -> None:
    """Give the units of some groups another order, in place: weights, what follows them, and their consumers' columns.

    Groups are those of `find_orders`. A state (a key-value cache) has what is inside of its heads in the new order.
    Raises RecipeError when a group is unknown or cannot change its order (`why_fixed`), or when what is given is none;
    then nothing was changed.
    """
    groups = {group.name: group for group in find_orders(graph)}
    for name, one in order.items():
        if name not in groups:
            raise unknown_group(name, groups)
        _check(graph, groups[name], one)
    moved: dict[tuple[str, int], Tensor] = {}  # of a tensor's axis: what comes to stand at each position
    for name, one in order.items():
        for part in groups[name].slices:
            index = moved.setdefault((part.name, part.axis), torch.arange(len(part.owner)))
            _set_positions(index, part, one.cpu())
    for (name, axis), index in moved.items():
        _move(stored(graph.module, name), axis, index)


def why_fixed(graph: Graph, group: ChannelGroup) -> str:
    """Why the units of a group cannot change their order, or ""."""
    if group.ordered:
        return group.ordered
    kept = {*dict(graph.module.named_parameters()), *dict(graph.module.named_buffers())}
    for one in group.slices:
        if len(one.owner[one.owner >= 0].unique(return_counts=True)[1].unique()) > 1:
            return f"units of several sizes in {one.name}"
        if one.name not in kept:
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


def _set_positions(index: Tensor, part: Slice, order: Tensor) -> None:
    """What comes to stand at the positions of a group's units, in place; index (length of the axis,) int64."""
    own = part.owner.argsort(stable=True)[int((part.owner < 0).sum()) :].reshape(len(order), -1)  # (units, size)
    index[own] = own[order]
