"""Runs a part of a graph on given values, and holds no more of what it makes than is asked for."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

Values = dict[fx.Node, Any]


class Machine(fx.Interpreter):
    """Runs a few nodes of a graph on given values; weights, which are always there, are read where they stand."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=False)
        self.weights = {node: self.fetch_attr(str(node.target)) for node in module.graph.nodes if node.op == "get_attr"}

    def run_nodes(
        self, nodes: tuple[fx.Node, ...], given: Values, keep: Iterable[fx.Node], *, gradients: bool = False
    ) -> Values:
        """The values of `keep` among these nodes; every other value is freed after its last reader."""
        keep = set(keep)
        frees = _last_readers(nodes, keep)
        self.env = {**self.weights, **given}
        with torch.set_grad_enabled(gradients):
            for node in nodes:
                if node not in self.env:
                    self.env[node] = self.run_node(node)
                for dead in frees.get(node, ()):
                    del self.env[dead]
        made, self.env = self.env, {}
        return {node: made[node] for node in nodes if node in keep}


def _last_readers(nodes: tuple[fx.Node, ...], keep: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    last = {source: node for node in nodes for source in (node, *node.all_input_nodes)}
    inside = set(nodes)
    frees: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if source in inside and source not in keep:
            frees.setdefault(node, []).append(source)
    return frees
