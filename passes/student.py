"""The parameters and buffers of a graph while it learns, apart from the graph's own until they are written back."""

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compressor.graph import Graph
from compressor.machine import Machine
from compressor.passes.trained import Trained
from compressor.passes.trials import put


class Student:
    """A graph that learns: every parameter a leaf times its mask, every buffer a copy, on the device where it learns.

    The zeros of every weight that the graph contracts are held; a tensor with several names is one leaf.

    learns: of a parameter, whether it does; else it is left as it is. By default those do that ask for a gradient.
    """

    def __init__(
        self, graph: Graph, device: torch.device, learns: Callable[[Tensor], bool] = lambda x: x.requires_grad
    ):
        sites = {id(site.weight) for site in graph.sites}
        self._own = own_tensors(graph)
        unique = {id(x): (name, x) for name, x in reversed(self._own.items())}
        self._key = {name: unique[id(x)][0] for name, x in self._own.items()}
        self.trained: dict[str, Trained] = {}
        self.buffers: dict[str, Tensor] = {}
        for name, x in sorted(unique.values()):
            if isinstance(x, torch.nn.Parameter) and learns(x):
                self.trained[name] = Trained.of(x, holds_zeros=id(x) in sites, device=device)
            else:
                self.buffers[name] = x.detach().to(device, copy=True)

    def tensors(self) -> dict[str, Tensor]:
        """What stands in the place of each name of the graph; there are gradients to the leaves."""
        made = self.buffers | {name: one.value() for name, one in self.trained.items()}
        return {name: made[key] for name, key in self._key.items()}

    def state(self) -> dict[str, Tensor]:
        """A copy of what is learned so far: values of parameters, and buffers."""
        values = {name: one.value().detach() for name, one in self.trained.items()}
        return {name: x.clone(memory_format=torch.contiguous_format) for name, x in (values | self.buffers).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        live = {name: one.leaf for name, one in self.trained.items()} | self.buffers
        put(list(live.values()), [state[name] for name in live])

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Write a state into the graph's own tensors, in place: every alias sees it."""
        put([self._own[name] for name in state], list(state.values()))

    def digest(self) -> str:
        """The same for the same values."""
        found = hashlib.sha256()
        for name, x in sorted(self.state().items()):
            found.update(f"{name} {tuple(x.shape)} {x.dtype} ".encode())
            found.update(x.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


def own_tensors(graph: Graph) -> dict[str, Tensor]:
    """The graph's own parameters and buffers, by every name that it fetches one by."""
    return {str(node.target): x for node, x in Machine(graph.module).weights.items()}
