"""Index tensors: for each element of a value, the label of the channel that it came from.

A value may hold channels along several axes at once (a weight does: its rows and its columns). Each numbering is a
facet: an int64 tensor of the value's shape, with stride 0 along the axes on which it does not vary, so that layout
operators can be run on it as they are and nothing is held twice. An element goes when any of its labels goes. No two
facets of a value vary along the same axis.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph as its channels see it.

    fixed: whether it is made of stored tensors and constants alone.
    """

    shape: tuple[int, ...]
    facets: tuple[Tensor, ...] = ()
    fixed: bool = False

    def along(self, axis: int) -> Tensor | None:
        """The facet that varies along an axis, if there is one."""
        return next((ids for ids in self.facets if axis % len(self.shape) in varying(ids)), None)


def core(ids: Tensor) -> Tensor:
    """The labels without repeats: axes on which they do not vary have length 1."""
    return ids[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in ids.stride())]


def varying(ids: Tensor) -> frozenset[int]:
    """The axes on which labels vary."""
    return frozenset(
        axis for axis, (n, stride) in enumerate(zip(ids.shape, ids.stride(), strict=True)) if n > 1 and stride
    )


def settled(ids: Tensor) -> Tensor:
    """The same labels, with stride 0 wherever they do not vary."""
    found = core(ids)
    for axis, n in enumerate(found.shape):
        if n > 1 and bool((found == found.narrow(axis, 0, 1)).all()):
            found = found.narrow(axis, 0, 1)
    return found.expand(ids.shape)


def leading(ids: Tensor) -> int:
    """Of the axes on which labels vary, the one that takes the longest strides through them: heads before what is in a
    head, groups before what is in a group."""
    labels = core(ids)
    ranges = {axis: int((labels.amax(axis) - labels.amin(axis)).max()) for axis in sorted(varying(ids))}
    return max(ranges, key=ranges.__getitem__)


def first_of(ids: Tensor, axes: Iterable[int]) -> Tensor:
    """The labels at the beginning of some axes, repeated along them."""
    found = ids
    for axis in axes:
        found = found.narrow(axis, 0, 1)
    return found.expand(ids.shape)


def mapped(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """The value with its axes moved, or with new ones of length 1."""
    shape = tuple(function(torch.zeros((), dtype=torch.long).expand(value.shape)).shape)
    return Value(shape, tuple(settled(function(ids)) for ids in value.facets), value.fixed)


def spread(vector: Tensor, shape: tuple[int, ...], axis: int) -> Tensor:
    """Labels (n,) laid along one axis of a shape."""
    sizes = [1] * len(shape)
    sizes[axis] = -1
    return settled(vector.reshape(sizes).expand(shape))
