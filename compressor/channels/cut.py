"""Units removed from a graph: `cut` makes it smaller, `mask` says what it has to compute.

The law that both are tested by: cut, then run == mask, then run.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from compressor.channels.groups import ChannelGroup, find_groups, unknown_group
from compressor.channels.literals import Literals
from compressor.channels.refresh import refresh
from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.stored import replace, stored

Keep = Mapping[str, Tensor]  # a group's name -> (units,) bool, True where a unit stays


def cut(graph: Graph, keep: Keep) -> None:
    """Remove units from a graph: parameters, buffers, states and the sizes that it spells out shrink.

    keep: by group; groups that it does not name stay whole. Raises RecipeError when a group is unknown or frozen, or
    would be left without units; then nothing was changed.
    """
    chosen = _chosen(graph, keep)
    if not chosen:
        return
    literals = Literals(graph.tracer, _gone(graph, chosen))
    _shrink(graph, chosen)
    literals.rewrite()
    refresh(graph.module, literals)
    graph.restructured()
    again = {group.name: kept for group, kept in chosen}
    graph.changed(lambda other: cut(other, again))


def mask(graph: Graph, keep: Keep) -> None:
    """Zero every parameter of the units that do not stay: their producers, what follows, and their consumers' columns.

    The graph keeps its shapes and computes what it would without the units. Running statistics stay as they are, since
    a variance of zero would divide. Raises RecipeError as `cut` does.
    """
    for group, kept in _chosen(graph, keep):
        for one in group.slices:
            tensor = None if one.is_state else stored(graph.module, one.name)
            if isinstance(tensor, nn.Parameter):
                with torch.no_grad():
                    tensor.index_fill_(one.axis, (~one.kept(kept)).nonzero().flatten(), 0.0)


def _chosen(graph: Graph, keep: Keep) -> list[tuple[ChannelGroup, Tensor]]:
    """The groups that lose units. Raises RecipeError."""
    groups = {group.name: group for group in find_groups(graph)}
    for name, kept in keep.items():
        if name not in groups:
            raise unknown_group(name, groups)
        _check(groups[name], kept)
    return [(groups[name], kept.bool().cpu()) for name, kept in keep.items() if not kept.all()]


def _check(group: ChannelGroup, kept: Tensor) -> None:
    if kept.shape != (group.units,):
        raise RecipeError(
            f"{group.name} has {group.units} units", found=f"a choice of shape {list(kept.shape)}", hint="one for each"
        )
    if kept.all():
        return
    if group.frozen:
        raise RecipeError(f"{group.name} cannot lose channels", found=group.frozen, hint="another group")
    if not kept.any():
        raise RecipeError(f"nothing would be left of {group.name}", found=f"{group.units} of {group.units} removed")


def _gone(graph: Graph, chosen: Iterable[tuple[ChannelGroup, Tensor]]) -> np.ndarray:
    """(labels,) bool: those of units that do not stay."""
    components = [group.components[~kept] for group, kept in chosen]
    return np.isin(graph.tracer.components, torch.cat(components).numpy())


# *** tensors ***


def _shrink(graph: Graph, chosen: Iterable[tuple[ChannelGroup, Tensor]]) -> None:
    kept: dict[tuple[str, int, bool], Tensor] = {}
    for group, keep in chosen:
        for one in group.slices:
            key = (one.name, one.axis, one.is_state)
            kept[key] = kept.get(key, torch.ones(len(one.owner), dtype=torch.bool)) & one.kept(keep)
    tensors: dict[str, dict[int, Tensor]] = {}
    for (name, axis, is_state), positions in kept.items():
        if is_state:
            graph.narrow(name, axis, positions.nonzero().flatten())
        else:
            tensors.setdefault(name, {})[axis] = positions.nonzero().flatten()
    for name, axes in tensors.items():
        before = stored(graph.module, name)
        smaller = before.detach()
        for axis, positions in axes.items():
            smaller = smaller.index_select(axis, positions.to(smaller.device))
        replace(graph.module, before, smaller)
