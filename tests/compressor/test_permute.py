"""Units in another order: the same function, other neighbours."""

import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.channels.groups import ChannelGroup, find_orders
from compressor.channels.listing import listing
from compressor.channels.permute import permute
from compressor.errors import RecipeError
from compressor.graph import Graph
from tests.compressor.test_channels import attention
from tests.compressor.tiny import Compute, graph_of, normal


def orders(graph: Graph) -> dict[str, torch.Tensor]:
    return {group.name: torch.arange(group.units).roll(1) for group in find_orders(graph) if not group.ordered}


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


# *** inside of heads ***


def inside(model: nn.Module) -> list[ChannelGroup]:
    return [group for group in find_orders(graph_of(model, normal(2, 5, 8))) if group.kind == "heads"]


def test_what_is_inside_of_a_head_is_a_group_and_query_heads_that_share_their_values_share_its_order():
    assert listing(inside(attention(4, 2))) == textwrap.dedent("""\
        v.weight: heads, 2 units
          produces 1 of v.weight axis 0
          follows 1 of v.bias axis 0
          consumes 2 of o.weight axis 1
        v.weight#2: heads, 2 units
          produces 1 of v.weight axis 0
          follows 1 of v.bias axis 0
          consumes 2 of o.weight axis 1""")
    assert [group.slices[-1].positions(1).tolist() for group in inside(attention(4, 2))] == [[1, 3], [5, 7]]


def test_what_lies_in_a_fused_matrix_of_queries_keys_and_values_is_found_in_its_last_third():
    def fused(m, x):
        q, k, v = (one.unflatten(-1, (2, 4)).transpose(1, 2) for one in m.qkv(x).split(8, -1))
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    groups = inside(Compute(fused, qkv=nn.Linear(8, 24), o=nn.Linear(8, 8)))
    owned = [(one.slices[0].owner >= 0).nonzero().flatten().tolist() for one in groups]
    assert owned == [[16, 17, 18, 19], [20, 21, 22, 23]]


def test_channels_that_positions_turn_or_that_carry_weights_of_their_own_in_a_head_stay_where_they_are():
    def scaled(m, x):
        q, k, v = (one(x).unflatten(-1, (2, 4)).transpose(1, 2) for one in (m.q, m.k, m.v))
        v = v * torch.arange(1.0, 5.0)
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    parts = {name: nn.Linear(8, 8) for name in "qkvo"}
    assert inside(Compute(scaled, **parts)) == []


def test_halves_of_which_one_is_turned_around_keep_to_themselves():
    def turned(m, x):
        a, b = m.up(x).chunk(2, -1)
        return m.down(torch.cat([-b, a], -1))

    torch.manual_seed(0)
    graph = graph_of(Compute(turned, up=nn.Linear(8, 8), down=nn.Linear(8, 3)).double(), normal(2, 8).double())
    groups = [group for group in find_orders(graph) if not group.ordered]
    assert [group.units for group in groups] == [4, 4]
    before = graph.run(graph.example)["y"]
    permute(graph, {group.name: torch.tensor([2, 0, 3, 1]) for group in groups})
    assert (graph.run(graph.example)["y"] - before).abs().max() < 1e-12
