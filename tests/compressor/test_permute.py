"""Units in another order: the same function, other neighbours."""

import pytest
import torch
from torch import nn

from compressor.channels.groups import find_groups
from compressor.channels.permute import permute
from compressor.errors import RecipeError
from compressor.graph import Graph
from tests.compressor.test_channels import attention
from tests.compressor.tiny import graph_of, normal


def orders(graph: Graph) -> dict[str, torch.Tensor]:
    return {group.name: torch.arange(group.units).roll(1) for group in find_groups(graph) if not group.frozen}


CONVOLUTIONS = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1),
    nn.Flatten(), nn.Linear(4 * 4 * 4, 2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 2)), normal(4, 3)),
        (attention(4, 2), normal(2, 5, 8)),
        (CONVOLUTIONS, normal(2, 3, 8, 8)),
    ],
    ids=["mlp", "attention", "convolutions"],
)
def test_a_permuted_graph_computes_the_same(model: nn.Module, x: torch.Tensor):
    torch.manual_seed(0)
    graph = graph_of(model.double(), x.double())
    before = graph.run(graph.example)["y"]
    weights = {name: w.clone() for name, w in graph.module.named_parameters()}
    chosen = orders(graph)
    assert chosen
    permute(graph, chosen)
    assert (graph.run(graph.example)["y"] - before).abs().max() < 1e-12
    assert not torch.equal(dict(graph.module.named_parameters())[next(iter(chosen))], weights[next(iter(chosen))])


def test_unit_i_of_the_new_order_is_the_one_that_the_order_names():
    graph = graph_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), normal(4, 3))
    before = dict(graph.module.named_parameters())["0.weight"].clone()
    order = torch.tensor([2, 0, 3, 1])
    permute(graph, {"0.weight": order})
    assert torch.equal(dict(graph.module.named_parameters())["0.weight"], before[order])


@pytest.mark.parametrize(
    ("name", "order", "reason"),
    [
        ("0.weight", torch.tensor([0, 0, 1, 2]), "this is no order of the 4 units"),
        ("2.weight", torch.tensor([1, 0]), "2.weight cannot change its order"),
        ("3.weight", torch.tensor([1, 0]), "no channel group is named"),
    ],
)
def test_refuses_what_is_no_order_of_a_group(name: str, order: torch.Tensor, reason: str):
    graph = graph_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), normal(4, 3))
    with pytest.raises(RecipeError, match=reason):
        permute(graph, {name: order})
