"""Sizes that a graph spells out, rewritten when channels go: `view(x, [B, S, 12, 64])` of eight heads says 8.

Every operator that names a length, a range or a number of groups has a rewriter here. What is kept along an axis is
read from the labels of the value itself, so that a rewriter knows nothing of where channels came from.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from compressor.provenance import Tracer
from compressor.provenance.facets import Value, core, varying
from compressor.provenance.products import groups_of, groups_position

aten = torch.ops.aten

Rewriter = Callable[["Literals", fx.Node], None]
_REWRITERS: dict[Any, Rewriter] = {}


def _rewrites(*names: str) -> Callable[[Rewriter], Rewriter]:
    def register(function: Rewriter) -> Rewriter:
        for name in names:
            packet = getattr(aten, name)
            _REWRITERS.update(dict.fromkeys((getattr(packet, one) for one in packet.overloads()), function))
        return function

    return register


class Literals:
    """The sizes in a graph, when some labels are gone."""

    def __init__(self, tracer: Tracer, gone: np.ndarray):
        self.tracer, self.gone = tracer, torch.from_numpy(gone)

    def rewrite(self) -> None:
        """Rewrite every operator, in place."""
        for node in list(self.tracer.module.graph.nodes):
            if node.op == "call_function" and node.target in _REWRITERS:
                _REWRITERS[node.target](self, node)

    def kept(self, value: Value, axis: int) -> Tensor:
        """(length of the axis,) bool: an index goes when nothing at it stays."""
        axis %= len(value.shape)
        for ids in value.facets:
            if axis in varying(ids):
                gone = self.gone[core(ids)].movedim(axis, 0)
                return ~gone.reshape(len(gone), -1).all(1)
        return torch.ones(value.shape[axis], dtype=torch.bool)

    def input(self, node: fx.Node) -> Value:
        return self.tracer.value(node.args[0])

    def sizes(self, node: fx.Node, position: int, value: Value) -> None:
        """Rewrite the list of sizes at a position of the arguments to those of a value, from its last axis on."""
        given: Any = node.args[position]
        first = len(value.shape) - len(given)
        node.update_arg(position, [self._size(node, size, self.kept(value, first + i)) for i, size in enumerate(given)])

    def _size(self, node: fx.Node, size: Any, kept: Tensor) -> Any:
        left, before = int(kept.sum()), len(kept)
        if left == before or size == -1:
            return size
        if not isinstance(size, fx.Node):
            return left
        graph = node.graph  # a size that is computed holds the number of channels as a factor
        with graph.inserting_before(node):
            product = _called(graph, operator.mul, size, left)
            return _called(graph, operator.floordiv, product, before)


def _called(graph: fx.Graph, function: Callable[..., Any], size: fx.Node, by: int) -> fx.Node:
    made = graph.call_function(function, (size, by))
    made.meta["val"] = function(size.meta["val"], by)
    return made


@_rewrites("view", "_unsafe_view", "reshape", "expand", "new_zeros", "new_ones", "new_full", "new_empty")
def _sizes_second(literals: Literals, node: fx.Node) -> None:
    if isinstance(node.args[1], (list, tuple)):
        literals.sizes(node, 1, literals.tracer.value(node))


@_rewrites("zeros", "ones", "full", "empty")
def _sizes_first(literals: Literals, node: fx.Node) -> None:
    literals.sizes(node, 0, literals.tracer.value(node))


@_rewrites("repeat")
def _repeat(literals: Literals, node: fx.Node) -> None:
    """Only axes of length 1 are repeated into channels."""
    made, own, times = literals.tracer.value(node), literals.input(node), list(_arguments(node)[1])
    for i in range(1, len(times) + 1):
        if (i > len(own.shape) or own.shape[-i] == 1) and isinstance(times[-i], int):
            times[-i] = int(literals.kept(made, -i).sum())
    node.update_arg(1, times)


@_rewrites("repeat_interleave")
def _repeat_interleave(literals: Literals, node: fx.Node) -> None:
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if isinstance(axis, int) and isinstance(node.args[1], int) and literals.input(node).shape[axis] == 1:
        node.update_arg(1, int(literals.kept(literals.tracer.value(node), axis).sum()))


@_rewrites("unflatten")
def _unflatten(literals: Literals, node: fx.Node) -> None:
    value = literals.tracer.value(node)
    axis: Any = node.args[1]
    sizes: Any = node.args[2]
    first = axis % len(literals.input(node).shape)
    node.update_arg(2, [literals._size(node, n, literals.kept(value, first + i)) for i, n in enumerate(sizes)])


@_rewrites("split", "chunk", "split_with_sizes")
def _split(literals: Literals, node: fx.Node) -> None:
    """Parts that were equal need no longer be: all become a split with sizes."""
    axis: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    if literals.kept(literals.input(node), axis).all():
        return
    parts: Any = literals.tracer.values[node]
    node.target = aten.split_with_sizes.default
    node.args = (node.args[0], [int(literals.kept(part, axis).sum()) for part in parts], axis)
    node.kwargs = {}


@_rewrites("slice")
def _slice(literals: Literals, node: fx.Node) -> None:
    args: list[Any] = list(node.args)
    kept = literals.kept(literals.input(node), args[1] if len(args) > 1 else 0)
    if not kept.all():
        node.args = (*args[:2], *(_moved(one, kept) if isinstance(one, int) else one for one in args[2:4]), *args[4:])


@_rewrites("narrow")
def _narrow(literals: Literals, node: fx.Node) -> None:
    x, axis, start, length = _arguments(node)
    kept = literals.kept(literals.input(node), axis)
    if not kept.all():
        node.args = (x, axis, _moved(start, kept), int(kept[start : start + length].sum()))


@_rewrites("select")
def _select(literals: Literals, node: fx.Node) -> None:
    x, axis, index = _arguments(node)
    kept = literals.kept(literals.input(node), axis)
    if not kept.all() and isinstance(index, int):
        node.args = (x, axis, _moved(index, kept))


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _moved(index: int, kept: Tensor) -> int:
    """Where an index lies once what is not kept before it is gone; past the end stays past the end."""
    n = len(kept)
    if index >= n:
        return index
    return int(kept[: max(index + n, 0) if index < 0 else index].sum())


@_rewrites("pad", "constant_pad_nd")
def _pad(literals: Literals, node: fx.Node) -> None:
    value, made, pads = literals.input(node), literals.tracer.value(node), list(_arguments(node)[1])
    for i in range(len(pads) // 2):
        kept = literals.kept(made, -1 - i)
        if not kept.all():
            before = pads[2 * i]
            pads[2 * i] = int(kept[:before].sum())
            pads[2 * i + 1] = int(kept[before + value.shape[-1 - i] :].sum())
    node.update_arg(1, pads)


@_rewrites("layer_norm", "rms_norm")
def _normalized_shape(literals: Literals, node: fx.Node) -> None:
    literals.sizes(node, 1, literals.input(node))


@_rewrites("group_norm")
def _group_norm(literals: Literals, node: fx.Node) -> None:
    kept = literals.kept(literals.input(node), 1).reshape(_arguments(node)[1], -1)
    node.update_arg(1, int(kept.any(1).sum()))


@_rewrites("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _groups(literals: Literals, node: fx.Node) -> None:
    """As many groups as channels stay as many as channels; else every group loses the same."""
    groups, weight = groups_of(node), literals.tracer.value(node.args[1])
    if groups == 1:
        return
    x = literals.input(node)
    axis = len(x.shape) - len(weight.shape) + 1
    if x.shape[axis] == groups:
        node.update_arg(groups_position(node), int(literals.kept(x, axis).sum()))


@_rewrites("native_channel_shuffle", "channel_shuffle")
def _same(literals: Literals, node: fx.Node) -> None:
    """Each group loses the same channels."""
