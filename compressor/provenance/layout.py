"""Rules of operators that move elements: they are run on the labels as they are on the data."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from compressor.provenance.facets import Value, core, mapped, settled, varying
from compressor.provenance.meeting import WHOLE, Shape, join
from compressor.provenance.tracer import Made, Tracer, rule

aten = torch.ops.aten


@rule(
    "clone", "contiguous", "detach", "detach_", "alias", "dropout", "to", "_to_copy", "type_as", "lift_fresh_copy",
    "feature_dropout",
)  # fmt: skip
def same(tracer: Tracer, node: fx.Node) -> Made:
    return tracer.value(node.args[0])


@rule(
    "permute", "transpose", "t", "numpy_T", "mT", "movedim", "swapaxes", "unsqueeze", "squeeze", "flatten", "unflatten",
    "split", "split_with_sizes", "chunk", "unbind", "narrow", "flip", "tile", "select",
)  # fmt: skip
def moved(tracer: Tracer, node: fx.Node) -> Made:
    return _moved(tracer, node, tracer.value(node.args[0]))


@rule("view", "_unsafe_view", "reshape")
def reshaped(tracer: Tracer, node: fx.Node) -> Made:
    value, shape = tracer.value(node.args[0]), tracer.shape(node)
    if not isinstance(node.args[1], (list, tuple)):
        return tracer.unknown(node)  # a view as another dtype
    return _run(tracer, value, lambda ids: ids.reshape(shape))


@rule("slice")
def sliced(tracer: Tracer, node: fx.Node) -> Made:
    """A part of an axis; every second channel would be another one after a removal."""
    value = tracer.value(node.args[0])
    if tracer.argument(node, 4, "step", 1) != 1:
        value = tracer.mixed(value, [tracer.argument(node, 1, "dim", 0)], "a slice takes every other of them")
    return _moved(tracer, node, value)


@rule("expand", "repeat")
def repeated(tracer: Tracer, node: fx.Node) -> Made:
    """An axis of length 1 that is spread to a length which the graph spells out may follow whatever it meets."""
    value, shape = tracer.value(node.args[0]), tracer.shape(node)
    made = moved(tracer, node)
    assert isinstance(made, Value)
    own = (1,) * (len(shape) - len(value.shape)) + value.shape
    sizes: Any = node.args[1]  # nodes stay nodes: what is computed follows by itself
    axes = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and own[axis] == 1]
    return Value(shape, (*made.facets, *tracer.sizes(shape, axes)), made.fixed)


@rule("repeat_interleave")
def interleaved(tracer: Tracer, node: fx.Node) -> Made:
    """Each position several times over; an axis of length 1 as in `repeated`."""
    value, shape = tracer.value(node.args[0]), tracer.shape(node)
    axis = tracer.argument(node, 2, "dim")
    if axis is None or not isinstance(node.args[1], int):
        return tracer.unknown(node)
    made = _moved(tracer, node, value)
    assert isinstance(made, Value)
    alone = [axis % len(shape)] if value.shape[axis] == 1 else []
    return Value(shape, (*made.facets, *tracer.sizes(shape, alone)), made.fixed)


@rule("roll")
def rolled(tracer: Tracer, node: fx.Node) -> Made:
    axes = tracer.argument(node, 2, "dims") or range(len(tracer.shape(node)))
    return tracer.mixed(tracer.value(node.args[0]), axes, "a roll carries them past the end")


@rule("stack")
def stacked(tracer: Tracer, node: fx.Node) -> Made:
    axis = tracer.argument(node, 1, "dim", 0) % len(tracer.shape(node))
    parts = [mapped(tracer.value(one), lambda ids: ids.unsqueeze(axis)) for one in node.args[0]]  # type: ignore[union-attr]
    return _concatenated(tracer, tracer.shape(node), parts, axis)


@rule("cat", "concat")
def concatenated(tracer: Tracer, node: fx.Node) -> Made:
    shape = tracer.shape(node)
    axis = tracer.argument(node, 1, "dim", 0) % len(shape)
    parts = [tracer.value(one) for one in node.args[0]]  # type: ignore[union-attr]
    return _concatenated(tracer, shape, [part for part in parts if len(part.shape) == len(shape)], axis)


@rule("pad", "constant_pad_nd")
def padded(tracer: Tracer, node: fx.Node) -> Made:
    """Channels that are added, each a constant, may follow whatever they meet."""
    value, pads = tracer.value(node.args[0]), tracer.numbers(node.args[1])
    rank = len(value.shape)
    mode = tracer.argument(node, 2, "mode", "constant") if node.target is aten.pad.default else "constant"
    margins = {rank - 1 - i: (pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)}
    grown = {axis for axis, margin in margins.items() if any(margin)}
    if mode != "constant":
        value = tracer.mixed(value, grown, f"they are padded in the mode {mode}")
    if any(min(margin) < 0 for margin in margins.values()):
        value = tracer.mixed(value, grown, "a negative padding takes some of them away")
    shape = tracer.shape(node)
    return Value(shape, tuple(_grown(tracer, ids, shape, margins) for ids in value.facets), value.fixed)


def _grown(tracer: Tracer, ids: Tensor, shape: Shape, margins: dict[int, tuple[int, int]]) -> Tensor:
    for axis, (before, after) in margins.items():
        if axis not in varying(ids):
            size = [shape[axis] if at == axis else n for at, n in enumerate(ids.shape)]
            ids = ids.narrow(axis, 0, 1).expand(size)
        elif before or after:
            new = tracer.labels.new(before + after, owned=False)
            sides = [_along(side, ids, axis) for side in (new[:before], new[before:])]
            ids = settled(torch.cat([sides[0], ids, sides[1]], axis))
    return ids


def _along(vector: Tensor, ids: Tensor, axis: int) -> Tensor:
    sizes = [1] * ids.ndim
    sizes[axis] = len(vector)
    return vector.reshape(sizes).expand([len(vector) if at == axis else n for at, n in enumerate(ids.shape)])


@rule("pixel_shuffle")
def pixel_shuffled(tracer: Tracer, node: fx.Node) -> Made:
    """C r^2 channels become C channels of r x r times the pixels."""
    value, square = tracer.value(node.args[0]), tracer.argument(node, 1, "upscale_factor") ** 2
    shape, axis = tracer.shape(node), len(value.shape) - 3
    ids = tracer.vector(value, axis, WHOLE)
    if ids is None:
        return Value(shape)
    blocks = ids.reshape(-1, square)  # (C, r^2)
    tracer.labels.unite(blocks, blocks[:, :1])
    return Value(shape, (_along(blocks[:, 0], torch.zeros((), dtype=torch.long).expand(shape), axis),), value.fixed)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffled(tracer: Tracer, node: fx.Node) -> Made:
    value, shape = tracer.value(node.args[0]), tracer.shape(node)
    ids = tracer.vector(value, 1, WHOLE)
    if ids is None:
        return Value(shape)
    groups = ids.reshape(tracer.argument(node, 1, "groups"), -1)
    tracer.labels.unite(groups, groups[:1])
    return Value(
        shape, (_along(groups.T.reshape(-1), torch.zeros((), dtype=torch.long).expand(shape), 1),), value.fixed
    )


# *** what they share ***


def _moved(tracer: Tracer, node: fx.Node, value: Value) -> Made:
    rest, kwargs = tracer.numbers(node.args[1:]), tracer.numbers(node.kwargs)
    return _run(tracer, value, lambda ids: node.target(ids, *rest, **kwargs))  # type: ignore[operator]


def _run(tracer: Tracer, value: Value, function: Callable[[Tensor], Any]) -> Made:
    """A layout operator run on each facet; several outputs where it has several."""
    probe = function(torch.zeros((), dtype=torch.long).expand(value.shape))
    if isinstance(probe, Tensor):
        return _part(tracer, value, tuple(probe.shape), map(function, value.facets))
    made = [function(ids) for ids in value.facets]
    return tuple(_part(tracer, value, tuple(one.shape), (parts[at] for parts in made)) for at, one in enumerate(probe))


def _part(tracer: Tracer, value: Value, shape: Shape, facets: Iterable[Tensor]) -> Value:
    found = [settled(ids) for ids in facets]
    for ids in found:
        if math.prod(shape) < math.prod(value.shape):
            tracer.labels.place(ids)  # what comes next may be another thing for these than for the rest
        if not varying(ids):
            tracer.labels.freeze(ids, "one of them is taken out by its number")
    return _one_an_axis(tracer, Value(shape, tuple(ids for ids in found if varying(ids)), value.fixed))


def _one_an_axis(tracer: Tracer, value: Value) -> Value:
    """Of two facets that have come to vary along one axis, what a tensor owns stays, or else the outer one."""
    kept: list[Tensor] = []
    for ids in sorted(value.facets, key=lambda ids: (not tracer.labels.is_owned(ids), _changes(ids))):
        clash = next((other for other in kept if varying(other) & varying(ids)), None)
        if clash is None:
            kept.append(ids)
        else:
            tracer.labels.freeze(ids, WHOLE)
    return Value(value.shape, tuple(kept), value.fixed)


def _changes(ids: Tensor) -> int:
    """How often labels change from one position to the next: of heads and what is inside of them, heads change less."""
    labels = core(ids)
    return sum(int((labels.diff(dim=axis) != 0).sum()) for axis in varying(ids))


def _concatenated(tracer: Tracer, shape: Shape, parts: list[Value], axis: int) -> Value:
    """One after another along an axis; along all others they meet."""
    fixed = all(part.fixed for part in parts)
    if all(part.along(axis) is None for part in parts):
        thin = [Value(_thin(part.shape, axis), tuple(ids.narrow(axis, 0, 1) for ids in part.facets)) for part in parts]
        facets = join(tracer.labels, _thin(shape, axis), thin)
        return Value(shape, tuple(ids.expand(shape) for ids in facets), fixed)
    chosen = [_touching(part, axis, parts) for part in parts]
    blank = torch.zeros((), dtype=torch.long)
    pieces = [blank.expand(part.shape) if ids is None else ids for part, ids in zip(parts, chosen, strict=True)]
    ids = torch.cat(pieces, axis)
    rest = [
        Value(_thin(part.shape, axis), tuple(one.narrow(axis, 0, 1) for one in part.facets if one is not taken))
        for part, taken in zip(parts, chosen, strict=True)
    ]
    others = join(tracer.labels, _thin(shape, axis), [one for one in rest if one.facets])
    return _one_an_axis(tracer, Value(shape, (settled(ids), *(one.expand(shape) for one in others)), fixed))


def _touching(part: Value, axis: int, parts: list[Value]) -> Tensor | None:
    """The facet of a part that goes on along the axis where another part's does."""
    if (found := part.along(axis)) is not None:
        return found
    axes = frozenset().union(*(varying(ids) for one in parts if (ids := one.along(axis)) is not None))
    return next((ids for ids in part.facets if varying(ids) & axes), None)


def _thin(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], 1, *shape[axis + 1 :])
