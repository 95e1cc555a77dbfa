"""Smoothing: the model computes what it did, zeros stay, loud channels are quieter, and what others read is left."""

import pytest
import torch
from torch import nn

from compressor.passes.smoothing import factors, folds, smooth
from compressor.progress import QUIET
from tests.compressor.tiny import Compute, graph_of, normal


def block() -> nn.Module:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 4)
    with torch.no_grad():
        norm.weight[2] = 50.0
        norm.bias.normal_()
        linear.weight[:, 3] = 0
    return nn.Sequential(norm, linear)


def test_half_a_strength_makes_channels_and_weights_meet():
    x, w = torch.tensor([16.0, 1.0, 0.25]), torch.tensor([1.0, 1.0, 4.0])
    s = factors(x, w, 0.5)
    assert (x / s).tolist() == (w * s).tolist() == [4.0, 1.0, 1.0]


def test_a_silent_channel_is_left_and_one_that_nothing_reads_is_made_small():
    silent, unread, _ = factors(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 2.0]), 0.5).tolist()
    assert silent == 1
    assert 10 < unread < 1000


def test_the_model_computes_what_it_did_and_its_loud_channel_is_quieter():
    graph = graph_of(block(), normal(4, 8))
    x = {"x0": normal(6, 8, seed=3)}
    before = graph.run(x)["y"]
    zeros = graph.sites[0].weight == 0
    [fold] = smooth(graph, graph.sites, [x], 0.5, QUIET)
    torch.testing.assert_close(graph.run(x)["y"], before, rtol=1e-4, atol=1e-4)
    assert (graph.sites[0].weight[zeros] == 0).all()
    gain = fold.affine[0].abs()
    assert 1 < gain[2] / gain[[0, 1, 4, 5, 6, 7]].max() < 15


@pytest.mark.parametrize(
    "reader",
    [lambda self, x: self.l(self.n(x)) + self.n.bias[0], lambda self, x: self.l(y := self.n(x)) + y.sum()],
    ids=["its bias is read elsewhere", "its output is read elsewhere"],
)
def test_a_normalization_that_others_read_is_left(reader):
    graph = graph_of(Compute(reader, n=nn.LayerNorm(8), l=nn.Linear(8, 8)), normal(4, 8))
    assert not list(folds(graph, graph.sites))


def test_a_weight_tied_to_an_embedding_is_left():
    model = Compute(
        lambda self, x: self.n(self.e(x[:, 0].long().abs() % 8)) @ self.e.weight.T, n=nn.LayerNorm(4),
        e=nn.Embedding(8, 4),
    )  # fmt: skip
    graph = graph_of(model, normal(4, 8))
    assert not list(folds(graph, graph.sites))
