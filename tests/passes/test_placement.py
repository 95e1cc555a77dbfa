"""Where activations are rounded: behind a convolution, its normalization and its ReLU; sums of two such; moves."""

import torch
from torch import nn

from compressor.passes.placement import inputs, with_outputs
from tests.compressor.tiny import Compute, graph_of, normal


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.norm(self.a(x))), 2)
        return torch.relu(self.b(x) + x).mean((2, 3))


def placed(graph, places):
    return [(one.value.name, sorted(node.name for node in one.readers), one.like and one.like.name) for one in places]


def test_products_of_matrices_have_their_inputs_rounded_for_themselves_alone():
    graph = graph_of(Compute(lambda self, x: self.l(x) + x, l=nn.Linear(8, 8)), normal(4, 8))
    assert placed(graph, inputs(graph.sites)) == [("args_0", ["linear"], None)]
    assert placed(graph, with_outputs(graph.module.graph, graph.sites, [])) == [("args_0", ["linear"], None)]


def test_a_product_of_matrices_may_be_a_maker_too():
    graph = graph_of(Compute(lambda self, x: torch.relu(self.l(x)) * 2, l=nn.Linear(8, 8)), normal(4, 8))
    places = with_outputs(graph.module.graph, graph.sites, graph.sites)
    assert placed(graph, places) == [("args_0", ["linear"], None), ("relu", ["mul"], None)]


def test_a_chain_of_convolutions_stays_on_codes():
    graph = graph_of(Block(), normal(2, 4, 8, 8))
    assert placed(graph, with_outputs(graph.module.graph, graph.sites, graph.sites)) == [
        ("args_0", ["conv2d"], None),
        ("relu", ["max_pool2d"], None),
        ("max_pool2d", ["add", "conv2d_1"], "relu"),
        ("conv2d_1", ["add"], None),
        ("relu_1", ["mean"], None),
    ]


def test_a_sum_with_a_value_in_floats_is_left_in_floats():
    model = Compute(lambda self, x: self.a(x) + x * 2, a=nn.Conv2d(4, 4, 1))
    graph = graph_of(model, normal(2, 4, 8, 8))
    names = [one.value.name for one in with_outputs(graph.module.graph, graph.sites, graph.sites)]
    assert names == ["args_0", "conv2d"]
