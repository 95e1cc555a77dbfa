"""What a graph says of its values, made to hold again after channels have gone."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from compressor.literals import Literals
from compressor.provenance.facets import Value


def refresh(module: fx.GraphModule, literals: Literals) -> None:
    """Give every `node.meta["val"]` the shape that is left of it.

    Read from the labels: to run every operator again on symbols would take longer than all the rest.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in module.graph.nodes])
    assert mode is not None, "a graph without shapes"
    for node, made in literals.tracer.values.items():
        if made is not None:
            node.meta["val"] = _shrunk(mode, literals, node.meta["val"], made)


def _shrunk(mode: FakeTensorMode, literals: Literals, before: Any, made: Any) -> Any:
    if isinstance(before, (list, tuple)):
        given = made if isinstance(made, tuple) else [None] * len(before)
        return [_shrunk(mode, literals, one, value) for one, value in zip(before, given, strict=True)]
    if not isinstance(before, Tensor) or not isinstance(made, Value):
        return before
    kept = [literals.kept(made, axis) for axis in range(len(made.shape))]
    if all(one.all() for one in kept):
        return before
    sizes = _sizes(before.shape, kept)
    with mode:
        return before.new_empty(sizes)


def _sizes(shape: Iterable[Any], kept: Iterable[torch.Tensor]) -> list[Any]:
    return [
        size if one.all() else int(one.sum()) if isinstance(size, int) else size * int(one.sum()) // len(one)
        for size, one in zip(shape, kept, strict=True)
    ]
