"""A graph as it runs to learn: batch normalization in training mode, on a device, with tensors in place of its own.

A captured graph is in evaluation form: batch normalization applies the running statistics. In the copy that is trained
it applies those of the batch, and moves the running ones. The graph itself is never rewritten. Dropout stays off.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from compressor.graph import Feeds, Graph
from compressor.machine import Machine
from compressor.segments import ancestors

aten = torch.ops.aten


class Runner:
    """Computes some nodes of a graph, in evaluation or in training form.

    wanted: nodes of the graph whose values a call returns. A call takes a tensor for the name of every weight and
    buffer; in training form it writes running statistics into those that it is given.
    """

    def __init__(self, graph: Graph, wanted: Sequence[fx.Node], device: torch.device, *, training: bool = False):
        module, copies = _copied(graph.module, device, training)
        self.wanted = [copies[node] for node in wanted]
        self.machine = Machine(module)
        needed = ancestors(self.wanted)
        self.nodes = tuple(node for node in module.graph.nodes if node in needed and node.op == "call_function")
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.ports = {port.name: node for node, port in zip(placeholders, graph.inputs, strict=True)}
        self.adapt = graph.adapt

    def __call__(self, feeds: Feeds, tensors: Mapping[str, Tensor], *, gradients: bool = False) -> list[Tensor]:
        feeds = self.adapt(feeds)
        given = {node: feeds[name] for name, node in self.ports.items()}
        given |= {node: tensors[str(node.target)] for node in self.machine.weights}
        made = self.machine.run_nodes(self.nodes, given, self.wanted, gradients=gradients)
        return [made[node] for node in self.wanted]


def _copied(
    module: fx.GraphModule, device: torch.device, training: bool
) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A copy of the graph over the same tensors, and each node's copy."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(module.graph, copies)  # type: ignore[arg-type]
    for node in graph.nodes:
        _move(node, device)
        if training:
            _train(node)
    return fx.GraphModule(module, graph), copies


def _move(node: fx.Node, device: torch.device) -> None:
    """Capturing has written the device that it ran on into the arguments."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)  # type: ignore[assignment]


def _train(node: fx.Node) -> None:
    if node.target is aten.batch_norm.default:
        node.update_arg(5, True)  # training
    if node.target is aten._native_batch_norm_legit_no_training.default:
        *tensors, momentum, eps = node.args
        node.target = aten._native_batch_norm_legit.default
        node.args = (*tensors, True, momentum, eps)
