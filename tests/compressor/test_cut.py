"""The law: cut, then run == mask, then run; and what is refused, with nothing changed."""

import pytest
import torch
from torch import nn

from compressor.channels.cut import cut, mask
from compressor.channels.groups import find_groups
from compressor.channels.permute import permute
from compressor.errors import RecipeError
from compressor.graph import Graph
from tests.compressor.laws import check_the_law, some
from tests.compressor.tiny import graph_of, normal


def mlp() -> Graph:
    torch.manual_seed(0)
    return graph_of(nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 2)).double(), normal(4, 3).double())


def test_a_cut_graph_is_smaller_and_computes_what_the_masked_one_does():
    graph = mlp()
    weight = dict(graph.module.named_parameters())["0.weight"].clone()
    keep = {"0.weight": torch.tensor([True, False, True, True, False, True])}
    cut(graph, keep)
    shapes = {name: tuple(x.shape) for name, x in graph.module.named_parameters()}
    assert shapes == {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}
    assert torch.equal(dict(graph.module.named_parameters())["0.weight"], weight[keep["0.weight"]])
    check_the_law(mlp(), keep)


def test_the_text_of_a_cut_graph_has_the_new_shapes():
    graph = mlp()
    cut(graph, {"0.weight": torch.arange(6) < 4})
    assert "weight 0.weight" in graph.text()
    assert "float64[4, 3]" in graph.text()
    assert "float64[batch, 4] = gelu" in graph.text()


def test_a_mask_zeroes_producers_and_consumers_and_keeps_every_shape():
    graph = mlp()
    mask(graph, {"0.weight": torch.arange(6) != 2})
    found = dict(graph.module.named_parameters())
    assert found["0.weight"].shape == (6, 3)
    assert not found["0.weight"][2].any()
    assert not found["0.bias"][2]
    assert not found["2.weight"][:, 2].any()
    assert found["2.weight"][:, 1].all()


def test_a_cut_graph_exports_has_gradients_and_can_be_cut_again():
    graph = mlp()
    cut(graph, {"0.weight": torch.arange(6) < 4})
    again = {"0.weight": torch.tensor([False, True, True, False])}
    check_the_law(graph, again)
    x = normal(5, 3, seed=1).double()
    program = graph.program().module()
    torch.testing.assert_close(program(x)[0], graph.run({"x0": x})["y"])
    graph.module(x)[0].sum().backward()
    assert all(one.grad is not None for one in graph.module.parameters())


def test_keeping_everything_changes_nothing():
    graph = mlp()
    before, text = graph.run(graph.example)["y"], graph.text()
    cut(graph, {"0.weight": torch.ones(6, dtype=torch.bool)})
    assert torch.equal(graph.run(graph.example)["y"], before)
    assert graph.text() == text


@pytest.mark.parametrize(
    ("name", "kept", "reason"),
    [
        ("0.weight", torch.zeros(6, dtype=torch.bool), "nothing would be left of 0.weight"),
        ("0.weight", torch.ones(5, dtype=torch.bool), "0.weight has 6 units"),
        ("2.weight", torch.tensor([True, False]), "2.weight cannot lose channels"),
        ("0.wieght", torch.ones(6, dtype=torch.bool), "no channel group is named '0.wieght'"),
    ],
)
def test_refuses_a_cut_that_cannot_be_and_changes_nothing(name: str, kept: torch.Tensor, reason: str):
    graph = mlp()
    before = graph.text()
    with pytest.raises(RecipeError, match=reason):
        cut(graph, {"0.weight": torch.arange(6) < 3, name: kept} if name != "0.weight" else {name: kept})
    assert graph.text() == before


def test_the_copy_of_a_graph_is_cut_by_itself():
    graph = mlp()
    other = graph.copy()
    cut(other, some(find_groups(other)))
    assert dict(graph.module.named_parameters())["0.weight"].shape == (6, 3)


def test_a_capture_in_another_dtype_is_changed_as_the_first_one_was():
    graph = mlp()
    cut(graph, {"0.weight": torch.arange(6) < 4})
    permute(graph, {"0.weight": torch.tensor([3, 1, 0, 2])})
    with torch.no_grad():
        next(graph.module.parameters()).mul_(2)
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 2))
    other = graph_of(layers, normal(4, 3))
    graph.repeat_on(other)
    wanted = graph.run(graph.example)["y"]
    torch.testing.assert_close(other.run(other.example)["y"], wanted.float())
