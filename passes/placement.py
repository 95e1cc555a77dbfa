"""Where activations are rounded, so that kernels for codes can run.

    what a site reads                      for that site
    what makers compute, as convolutions   for all that read it, after its normalization and its ReLU
    the sum of two such, after its ReLU    for all that read it
    such a value that is moved or pooled   for all that read it, on the same grid

The first is all that products of matrices need. The others are for kernels that make codes of codes: without them, each
convolution would give floats that the next operator turns into codes again, or would not run on codes at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from compressor.sites import BATCH_NORMS, WeightSite

aten = torch.ops.aten

_RECTIFIERS = (aten.relu.default, aten.relu_.default)
_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_MOVES = (
    aten.max_pool2d.default, aten.slice.Tensor, aten.view.default, aten.reshape.default, aten.flatten.using_ints,
    aten.permute.default, aten.transpose.int, aten.constant_pad_nd.default, aten.pad.default, aten.dropout.default,
)  # fmt: skip
"""Operators that keep a value on its grid: zero, which padding adds, is on every grid."""


@dataclass(frozen=True)
class Place:
    """A value to be rounded for some of its readers.

    like: the value whose grid it lies on already, where an operator has only moved that value's numbers.
    """

    value: fx.Node
    readers: tuple[fx.Node, ...]
    like: fx.Node | None = None


def inputs(sites: Sequence[WeightSite]) -> list[Place]:
    """What the sites read, each for the sites that read it."""
    readers: dict[fx.Node, dict[fx.Node, None]] = {}
    for site in sites:
        for use in site.uses:
            readers.setdefault(use.activation, {})[use.node] = None
    return [Place(value, tuple(nodes)) for value, nodes in readers.items()]


def with_outputs(graph: fx.Graph, sites: Sequence[WeightSite], makers: Sequence[WeightSite]) -> list[Place]:
    """The inputs of the sites, and what those of them compute that are makers, in the graph's order."""
    found = {place.value: place for place in inputs(sites)}
    making = {use.node for site in makers for use in site.uses}
    whole: dict[fx.Node, fx.Node] = {}  # a value on a grid for all its readers -> the one that this grid is for
    for node in graph.nodes:
        if node in making:
            end = after(node)
            whole[end] = end
        elif node.target in _SUMS and all(one in whole for one in node.args[:2]):
            end = _rectified(node)
            whole[end] = end
        elif node.target in _MOVES and node.args[0] in whole:
            whole.setdefault(node, whole[node.args[0]])
    for value, like in whole.items():
        found[value] = Place(value, tuple(value.users), None if like is value else like)
    order = {node: position for position, node in enumerate(graph.nodes)}
    return sorted(found.values(), key=lambda place: order[place.value])


def after(maker: fx.Node) -> fx.Node:
    """The last of a product, the normalization that alone reads it, and the ReLU that alone reads that."""
    norm = _only_reader(maker)
    if norm is None or norm.target not in BATCH_NORMS:
        return _rectified(maker)
    gives_several = isinstance(norm.meta.get("val"), (tuple, list))
    value = _only_reader(norm) if gives_several else norm
    return _rectified(value) if value is not None else maker


def _rectified(node: fx.Node) -> fx.Node:
    reader = _only_reader(node)
    return reader if reader is not None and reader.target in _RECTIFIERS else node


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
