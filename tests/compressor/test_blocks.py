"""Depth: residual blocks found in a graph, and the graph without them."""

import pytest
import torch
from torch import Tensor, fx, nn

from compressor.channels.blocks import Block, drop, find_blocks
from compressor.errors import RecipeError
from compressor.graph import Graph
from tests.compressor.tiny import Compute, graph_of, normal


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def deep(n: int = 3) -> Graph:
    torch.manual_seed(0)
    layers = nn.Sequential(*(Layer() for _ in range(n)))
    return graph_of(Compute(lambda m, x: m.head(m.layers(x)), layers=layers, head=nn.Linear(4, 2)), normal(2, 4))


def without(graph: Graph, blocks: list[Block]) -> Tensor:
    """What the graph computes when the branches of some blocks add nothing."""
    streams = {one.addition: one.stream for block in blocks for one in block.residuals}

    class Skips(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            return self.env[streams[node]] if node in streams else super().run_node(node)

    return Skips(graph.module, garbage_collect_values=False).run(graph.example["x0"])[0]


def test_finds_every_residual_block_with_its_weights():
    found = find_blocks(deep())
    assert [block.name for block in found] == ["layers.0", "layers.1", "layers.2"]
    assert found[1].parameters == tuple(
        f"layers.1.{name}" for name in ("norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias")
    )


@pytest.mark.parametrize("names", [["layers.0"], ["layers.2"], ["layers.0", "layers.1"], ["layers.2", "layers.1"]])
def test_without_blocks_a_graph_computes_what_it_would_if_they_added_nothing(names: list[str]):
    graph = deep()
    wanted = without(graph, [block for block in find_blocks(graph) if block.name in names])
    drop(graph, names)
    assert torch.equal(graph.run(graph.example)["y"], wanted)
    left = {name for name, _ in graph.module.named_parameters()}
    assert not any(name.startswith(tuple(f"{one}." for one in names)) for name in left)
    torch.testing.assert_close(graph.program().module()(graph.example["x0"])[0], wanted)


def test_an_activation_that_adds_to_itself_is_no_block():
    model = Compute(lambda m, x: m.b(m.a(x) + 0.1 * m.a(x).pow(3)), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    assert not find_blocks(graph_of(model, normal(2, 4)))


def test_refuses_a_name_that_is_no_block():
    graph = deep(2)
    with pytest.raises(RecipeError, match=r"no residual block is named 'layers.9'"):
        drop(graph, ["layers.9"])
