"""Graphs small enough to check by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compressor.graph import Graph, Port, lower

BATCH = {0: "batch"}


def graph_of(model: nn.Module, *inputs: Tensor, dynamic: Sequence[dict[int, str]] | None = None) -> Graph:
    """The model as a graph: inputs x0, x1, ..., output y; the batch may vary unless `dynamic` says otherwise."""
    ports = tuple(Port(f"x{i}", axes) for i, axes in enumerate(dynamic or [BATCH] * len(inputs)))
    example = {f"x{i}": x for i, x in enumerate(inputs)}
    return lower(model.eval(), lambda *x: (model(*x),), example, ports, (Port("y", BATCH),))


class Compute(nn.Module):
    """A module that owns the given parameters or modules and computes a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Tensor], **parts: Tensor | nn.Module):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
