"""Graphs small enough to check by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Residual(nn.Module):
    """What is between its two weights cannot be made up for by either of them alone."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc, self.out = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.gelu(self.fc(self.norm(x))))


def residual() -> nn.Module:
    """Three such blocks and a head: (..., 16) -> (..., 4), the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(*(Residual() for _ in range(3)), nn.Linear(16, 4))


def state(graph: Graph) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: x.detach().clone() for name, x in graph.module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both hold the same names and the same values."""
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())
