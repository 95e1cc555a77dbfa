"""Units of a graph put into another order: the graph computes the same, and its weights lie differently.

Where groups of neighbours are to be sparse (2:4), it matters who the neighbours are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup, Slice, find_groups, unknown_group
from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.stored import replace, stored

Order = Mapping[str, Tensor]  # a group's name -> (units,) int64: which unit comes first, second, ...


def permute(graph: Graph, order: Order) -> None:
    """Give the units of some groups another order, in place: weights, what follows them, and their consumers' columns.

    A state (a key-value cache) has its heads in the new order. Raises RecipeError when a group is unknown or frozen, or
    its order is none; then nothing was changed.
    """
    groups = {group.name: group for group in find_groups(graph)}
    for name, one in order.items():
        if name not in groups:
            raise unknown_group(name, groups)
        _check(groups[name], one)
    for name, one in order.items():
        for part in groups[name].slices:
            if not part.is_state:
                before = stored(graph.module, part.name)
                replace(graph.module, before, before.detach().index_select(part.axis, _positions(part, one.cpu())))
    graph.changed(lambda other: permute(other, order))


def _check(group: ChannelGroup, order: Tensor) -> None:
    if not torch.equal(order.cpu().sort().values, torch.arange(group.units)):
        raise RecipeError(f"this is no order of the {group.units} units of {group.name}", found=str(order.tolist()[:8]))
    if group.frozen:
        raise RecipeError(f"{group.name} cannot change its order", found=group.frozen, hint="another group")
    for one in group.slices:
        if len(one.owner[one.owner >= 0].unique(return_counts=True)[1].unique()) > 1:
            raise RecipeError(f"{group.name} cannot change its order", found=f"units of several sizes in {one.name}")


def _positions(part: Slice, order: Tensor) -> Tensor:
    """(length of the axis,) int64: what comes to stand at each position."""
    own = [part.positions(unit) for unit in range(len(order))]
    index = torch.arange(len(part.owner))
    for to, unit in enumerate(order.tolist()):
        index[own[to]] = own[unit]
    return index
