"""Tensors that a captured module stores, by name, and others put in their places."""

from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn


def stored(module: fx.GraphModule, name: str) -> Tensor:
    """The parameter, buffer or constant of that qualified name."""
    value = attrgetter(name)(module)
    assert isinstance(value, Tensor)
    return value


def replace(module: fx.GraphModule, before: Tensor, after: Tensor) -> None:
    """Put a tensor in the place of another under each of its names; a parameter stays one."""
    made: Any = nn.Parameter(after, before.requires_grad) if isinstance(before, nn.Parameter) else after
    for holder in module.modules():
        tables: list[dict[str, Any]] = [holder._parameters, holder._buffers, holder.__dict__]
        for table in tables:
            table.update({key: made for key, value in table.items() if value is before})
