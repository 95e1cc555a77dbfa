"""What the values of a graph are on given inputs, batch after batch; no more than one batch is held."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from compressor.calibrate import placed
from compressor.graph import Feeds, Graph
from compressor.machine import Machine
from compressor.progress import Progress

Watchers = Mapping[fx.Node, Callable[[Tensor], None]]


def watch(graph: Graph, batches: Sequence[Feeds], watchers: Watchers, progress: Progress) -> None:
    """Call each watcher with its node's value, once a batch. No weight is written."""
    machine = _Watched(graph, watchers)
    nodes = tuple(node for node in graph.module.graph.nodes if node.op != "output")
    with progress.task("measuring ranges", total=len(batches)) as step:
        for batch in batches:
            given = placed(graph, batch)
            for node in given.keys() & watchers.keys():
                watchers[node](given[node])
            machine.run_nodes(nodes, given, keep=())
            step()


class _Watched(Machine):
    def __init__(self, graph: Graph, watchers: Watchers):
        super().__init__(graph.module)
        self.watchers = watchers

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.watchers:
            self.watchers[n](value)
        return value
