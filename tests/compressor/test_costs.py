"""Operations, weights and memory of one call, counted by hand beside."""

import torch
from torch import Tensor, nn

from compressor.graph import Graph
from compressor.proof.costs import costs
from tests.compressor.tiny import Compute, graph_of, normal


def counted(graph: Graph) -> tuple[int, int, int, int]:
    found = costs(graph, graph.example)
    return found.flops, found.parameters, found.parameter_bytes, found.activation_bytes


def test_a_linear_layer_multiplies_and_adds_once_per_weight_and_row():
    graph = graph_of(nn.Linear(8, 4), normal(3, 8))
    assert counted(graph) == (2 * 3 * 8 * 4, 36, 4 * 36, 4 * (3 * 8 + 3 * 4))


def test_a_grouped_convolution_is_counted_for_its_own_channels():
    graph = graph_of(nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), normal(2, 4, 5, 5))
    assert counted(graph)[:2] == (2 * (2 * 5 * 5) * 6 * 2 * 9, 6 * 2 * 9)


def test_products_of_activations_are_counted_fused_or_not():
    def fused(_: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def eager(_: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v

    inputs = [normal(2, 3, 7, 4, seed=seed) for seed in range(3)]
    found = [counted(graph_of(Compute(how), *inputs))[0] for how in (fused, eager)]
    assert found == [2 * (2 * 2 * 3 * 7 * 7 * 4)] * 2


def test_a_value_is_freed_after_its_last_reader_and_a_view_costs_nothing():
    chain = graph_of(Compute(lambda _, x: ((x + 1).reshape(-1, 4).T * 2).exp()), normal(2, 8))
    assert counted(chain)[3] == 2 * 64  # 16 floats of 4 bytes, two at a time
    branch = graph_of(Compute(lambda _, x: (x + 1) * (x + 2) * x), normal(2, 8))
    assert counted(branch)[3] == 4 * 64  # the input, both sums, and their product


def test_buffers_take_memory_and_are_no_parameters_and_tied_weights_count_once():
    norm = graph_of(nn.BatchNorm1d(4), normal(3, 4))
    assert counted(norm)[1:3] == (8, 4 * 16 + 8)  # weight, bias, two statistics, and the count of batches
    layer = nn.Linear(4, 4, bias=False)
    tied = nn.Sequential(layer, layer)
    assert counted(graph_of(tied, normal(3, 4)))[:3] == (2 * 2 * 3 * 16, 16, 64)


def test_the_peak_is_weights_and_activations():
    found = costs(graph := graph_of(nn.Linear(8, 4), normal(3, 8)), graph.example)
    assert found.peak_bytes == found.parameter_bytes + found.activation_bytes
