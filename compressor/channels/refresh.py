"""What a graph says of its values, made to hold again after channels have gone."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from compressor.channels.literals import Literals
from compressor.provenance.facets import Value


def refresh(module: fx.GraphModule, literals: Literals) -> None:
    """Give every `node.meta["val"]` the shape that is left of it.

    Read from the labels: to run every operator again on symbols would take longer than all the rest.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in module.graph.nodes])
    assert mode is not None, "a graph without shapes"
    shrunk = _Shrunk(mode, literals)
    for node, made in literals.tracer.values.items():
        if made is not None:
            node.meta["val"] = shrunk.of(node.meta["val"], made)


class _Shrunk:
    """What stands for values without their removed channels; one for all that have one shape."""

    def __init__(self, mode: FakeTensorMode, literals: Literals):
        self.mode, self.literals = mode, literals
        self.made: dict[str, Tensor] = {}

    def of(self, before: Any, made: Any) -> Any:
        if isinstance(before, (list, tuple)):
            given = made if isinstance(made, tuple) else [None] * len(before)
            return [self.of(one, value) for one, value in zip(before, given, strict=True)]
        if not isinstance(before, Tensor) or not isinstance(made, Value) or not made.facets:
            return before
        kept = [self.literals.kept(made, axis) for axis in range(len(made.shape))]
        if all(one.all() for one in kept):
            return before
        sizes = _sizes(before.shape, kept)
        key = f"{before.dtype} {before.device} {sizes}"
        if key not in self.made:
            with self.mode:
                self.made[key] = before.new_empty(sizes)
        return self.made[key]


def _sizes(shape: Iterable[Any], kept: Iterable[torch.Tensor]) -> list[Any]:
    return [
        size if one.all() else int(one.sum()) if isinstance(size, int) else size * int(one.sum()) // len(one)
        for size, one in zip(shape, kept, strict=True)
    ]
