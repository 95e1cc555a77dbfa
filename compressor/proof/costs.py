"""What one call of a graph takes: floating-point operations, weights, and the memory that lives at once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from compressor.graph import Feeds, Graph


@dataclass(frozen=True)
class Costs:
    """One call on given inputs.

    flops: of contractions (weights, attention), a multiplication and an addition each; the rest is not counted.
    parameters: how many, tied ones once. parameter_bytes, activation_bytes: of the parameters and buffers, and the
        most that inputs, outputs and values between operators hold at any one time, as the graph's dtypes store them.
    """

    flops: int
    parameters: int
    parameter_bytes: int
    activation_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Parameters and activations together."""
        return self.parameter_bytes + self.activation_bytes


@dataclass(frozen=True)
class CostChange:
    """One workload on the dense model and on what became of it."""

    workload: str
    dense: Costs
    compressed: Costs


def costs(graph: Graph, feeds: Feeds) -> Costs:
    """Run the graph once on these inputs, and count.

    Memory is a model of a runtime that frees a value after its last reader and keeps views of it for nothing; what an
    operator uses inside is not seen. Zeros of sparse weights are multiplied like others.
    """
    counted, feeds = _Counted(graph.module), graph.adapt(feeds)
    # The kernel that is made of matrix products: fused ones are counted on some devices and not on others.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted.run(*(feeds[port.name] for port in graph.inputs))
    stored = {id(x): x for x in (*graph.module.parameters(), *graph.module.buffers())}
    return Costs(
        counter.get_total_flops(),
        sum(x.numel() for x in graph.module.parameters()),
        sum(x.nbytes for x in stored.values()),
        counted.peak,
    )


def costs_of(graph: Graph, workloads: Mapping[str, Feeds]) -> dict[str, Costs]:
    """The costs of each workload, by name."""
    return {name: costs(graph, feeds) for name, feeds in workloads.items()}


class _Counted(fx.Interpreter):
    """Runs a graph and keeps account of the storages that are alive; peak: the most bytes of them at once."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=True)
        self._weights: set[int] = set()
        self._readers: Counter[int] = Counter()  # storage -> how many values that may still be read look at it
        self._bytes: dict[int, int] = {}
        self.peak = 0

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr":
            self._weights.update(_storages(value))
        if n.op in ("get_attr", "output"):
            return value
        self._hold(value)
        for dead in self.user_to_last_uses.get(n, ()):
            self._release(self.env.get(dead))
        if not n.users:
            self._release(value)
        return value

    def _hold(self, value: Any) -> None:
        for key, size in _storages(value).items():
            if key not in self._weights:
                self._readers[key] += 1
                self._bytes[key] = size
        self.peak = max(self.peak, sum(self._bytes.values()))

    def _release(self, value: Any) -> None:
        for key in _storages(value):
            self._readers[key] -= 1
            if self._readers[key] <= 0:
                self._bytes.pop(key, None)


def _storages(value: Any) -> dict[int, int]:
    """Identity -> bytes of each storage among the tensors of a value."""
    found = (x.untyped_storage() for x in tree_leaves(value) if isinstance(x, Tensor))
    return {storage._cdata: storage.nbytes() for storage in found}
