"""The pass `depth`: the blocks that matter least go, and nothing else changes."""

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import InternalError, RecipeError
from compressor.graph import Graph
from compressor.passes.depth import Depth
from compressor.pipeline import Context, parse_pass, run_pipeline
from tests.compressor.tiny import graph_of, normal


class Tower(nn.Module):
    """Four residual blocks, of which each brings as much as its scale."""

    def __init__(self, *scales: float):
        super().__init__()
        torch.manual_seed(0)
        self.h = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in scales)
        self.scales, self.head = scales, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for scale, block in zip(self.scales, self.h, strict=True):
            x = x + scale * block(x)
        return self.head(x)


def tower() -> Graph:
    return graph_of(Tower(1.0, 0.01, 2.0, 0.1), normal(3, 8))


def leave_out(graph: Graph, text: str) -> list[str]:
    batches = [{"x0": normal(16, 8, seed=seed)} for seed in range(2)]
    [outcome] = run_pipeline(graph, [parse_pass(text)], Context(lambda n: batches))
    return list(outcome.notes)


@pytest.mark.parametrize(("blocks", "names"), [(1, "h.1"), (2, "h.1, h.3"), (3, "h.1, h.3, h.0")])
def test_the_blocks_that_bring_least_go_first(blocks, names):
    graph = tower()
    assert leave_out(graph, f"depth{{blocks={blocks}}}") == [f"depth: left out {names}"]
    assert len(graph.sites) == 9 - 2 * blocks


def test_what_is_left_computes_what_the_model_would_without_the_block():
    graph, x = tower(), normal(5, 8, seed=9)
    leave_out(graph, "depth{blocks=2}")
    short = Tower(1.0, 0.01, 2.0, 0.1)
    short.scales = (1.0, 0.0, 2.0, 0.0)
    assert torch.allclose(graph.run({"x0": x})["y"], short(x), atol=1e-6)


def test_blocks_that_are_ignored_stay():
    assert leave_out(tower(), "depth{blocks=1,ignore=[h.1]}") == ["depth: left out h.3"]
    assert leave_out(tower(), "depth{blocks=1,targets=[h.0,h.2]}") == ["depth: left out h.0"]


def test_one_block_stays_and_a_model_without_any_is_refused():
    for graph, n in ((tower(), 4), (graph_of(nn.Linear(8, 4), normal(3, 8)), 1)):
        with pytest.raises(RecipeError, match=f"{n} blocks? cannot be left out") as refused:
            Depth(n).plan(graph)
        assert refused.value.hint == ("--depth 3" if n == 4 else "--channels 0.5, which asks for no blocks")
    with pytest.raises(RecipeError, match="must be at least 1"):
        Depth(0)


def test_a_block_that_is_still_there_is_found_out():
    graph = tower()
    outcome = Depth(1).run(graph.copy(), Context(lambda n: [{"x0": normal(16, 8)}]))
    with pytest.raises(InternalError, match=r"h\.1\.\d\.weight is gone, and it is not"):
        Depth(1).ensures(graph, outcome)
