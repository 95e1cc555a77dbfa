"""What shapes tensors will have once units are gone. Touches nothing."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from compressor.channels.cut import Keep
from compressor.channels.groups import ChannelGroup
from compressor.graph import Graph
from compressor.passes.student import own_tensors

Shapes = dict[str, tuple[int, ...]]


def shapes_after(graph: Graph, groups: Iterable[ChannelGroup], keep: Keep) -> Shapes:
    """The shape of every parameter and buffer, by each of its names, when the groups keep these units."""
    tensors = own_tensors(graph)
    lengths = _lengths(groups, keep)
    by_id = {id(tensors[name]): lengths[name] for name in lengths if name in tensors}
    return {
        name: tuple(by_id.get(id(x), {}).get(axis, size) for axis, size in enumerate(x.shape))
        for name, x in tensors.items()
    }


def parameters_after(graph: Graph, groups: Iterable[ChannelGroup], keep: Keep) -> int:
    """How many parameters there will be, tied ones once."""
    shapes = shapes_after(graph, groups, keep)
    sizes = {id(x): math.prod(shapes[name]) for name, x in own_tensors(graph).items() if isinstance(x, nn.Parameter)}
    return sum(sizes.values())


def per_unit(graph: Graph, group: ChannelGroup, weights: Mapping[int, float] | None = None) -> float:
    """How many parameters go with one unit of a group, on average.

    weights: how much each value of a parameter counts, by its identity, others not at all; 1 for all when None.
    """
    tensors = own_tensors(graph)
    owned = [
        x.numel() * int((one.owner >= 0).sum()) / len(one.owner) * (1.0 if weights is None else weights.get(id(x), 0.0))
        for one in group.slices
        if isinstance(x := tensors.get(one.name), nn.Parameter)
    ]
    return sum(owned) / group.units


def _lengths(groups: Iterable[ChannelGroup], keep: Keep) -> dict[str, dict[int, int]]:
    """What is left of each axis that loses something, by tensor."""
    kept: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        if group.name not in keep:
            continue
        for one in group.slices:
            axes = kept.setdefault(one.name, {})
            axes[one.axis] = axes.get(one.axis, torch.ones(len(one.owner), dtype=torch.bool)) & one.kept(
                keep[group.name]
            )
    return {name: {axis: int(x.sum()) for axis, x in axes.items()} for name, axes in kept.items()}
