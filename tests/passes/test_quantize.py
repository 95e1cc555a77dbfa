"""The pass `quantize`: weights on grids, zeros zero, activations rounded, and what is refused or left."""

import pytest
import torch
from torch import nn

from compressor.errors import InternalError, RecipeError
from compressor.models.zoo_source import ZooSource
from compressor.passes.quantize import Quantize
from compressor.pipeline import Context, format_pass, parse_pass, run_pipeline
from compressor.proof.parity import difference
from compressor.quantization import Point, Rounding
from compressor.rounded import round_activations, unrounded
from compressor.source import Options
from tests.compressor.tiny import Compute, graph_of, normal
from tests.trained import WINDOW

EIGHT, FOUR = "quantize{kind=int8-dynamic,sweeps=0}", "quantize{kind=int4,sweeps=0,group=16}"


def quantized(graph, *passes: str):
    feeds = [{"x0": normal(64, 32, seed=5)}]
    return run_pipeline(graph, [parse_pass(one) for one in passes], Context(lambda n: feeds))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 16))


@pytest.mark.parametrize(("text", "bits"), [(EIGHT, 8), ("quantize{kind=int4,group=16}", 4)])
def test_weights_lie_on_the_grid_that_the_graph_carries(text, bits):
    graph = graph_of(nn.Linear(32, 8), normal(4, 32))
    [outcome] = quantized(graph, text)
    [site] = graph.sites
    grid = graph.grids[site.name]
    codes = grid.codes(site.matrix())
    assert grid.bits == bits
    assert codes.abs().max() <= 2 ** (bits - 1) - 1
    torch.testing.assert_close(codes * grid.spread(32), site.matrix())
    assert [row.dtype for row in outcome.of("changed")] == [f"int{bits}"]


@pytest.mark.parametrize("sweeps", [0, 2])
def test_zeros_of_a_pruned_weight_are_code_zero(sweeps):
    graph = graph_of(nn.Linear(32, 8), normal(4, 32))
    quantized(graph, "sparsify{pattern=2:4,targets=[*weight*]}", f"quantize{{kind=int4,group=16,sweeps={sweeps}}}")
    [site] = graph.sites
    codes = graph.grids[site.name].codes(site.matrix())
    assert (codes.reshape(-1, 4) != 0).sum(1).max() <= 2


def test_the_graph_computes_with_rounded_activations():
    graph = graph_of(nn.Linear(32, 8), normal(4, 32))
    quantized(graph, EIGHT)
    x, [site] = normal(4, 32, seed=3), graph.sites
    low, high = x.min(), x.max()
    scale = (high - low) / 255
    zero = (-low / scale).round()
    rounded = scale * ((x / scale).round().add(zero).clamp(0, 255) - zero)
    expected = rounded @ site.weight.T + graph.module.get_parameter("bias")
    torch.testing.assert_close(graph.run({"x0": x})["y"], expected)


def test_an_activation_of_two_readers_is_rounded_once():
    model = Compute(lambda self, x: self.a(x) + self.b(x), a=nn.Linear(32, 8), b=nn.Linear(32, 8))
    graph = graph_of(model, normal(4, 32))
    quantized(graph, EIGHT)
    [point] = graph.points
    assert (len(point.readers), point.rounding) == (2, Rounding("tensor"))
    assert [site.name for site in graph.sites] == ["a.weight", "b.weight"]


def test_blocks_are_rounded_each_by_its_own_range():
    x = torch.tensor([[127.0, 3.4, 0.0127, 0.0034]])
    found = torch.ops.compressor.round_activation(x, "block", 1.0, 0, 2)
    torch.testing.assert_close(found, torch.tensor([[127.0, 3.0, 0.0127, 0.0034]]), rtol=0, atol=6e-5)


def test_an_activation_of_zeros_stays():
    for kind in ("tensor", "block"):
        assert not torch.ops.compressor.round_activation(torch.zeros(2, 3), kind, 1.0, 0, 2).any()


def test_a_weight_tied_to_an_embedding_is_left_unless_asked_for_and_then_has_eight_bits():
    model = Compute(lambda self, x: self.l(x) @ self.e.weight.T + self.e(x.argmax(1)).sum(), e=nn.Embedding(32, 16),
                    l=nn.Linear(32, 16))  # fmt: skip
    for text, expected in ((FOUR, ["int4"]), (FOUR.replace("}", ",embeddings=true}"), ["int4", "int8"])):
        graph = graph_of(model, normal(4, 32))
        [outcome] = quantized(graph, text)
        assert [row.dtype for row in outcome.of("changed")] == expected


def test_refuses_rows_that_do_not_divide_into_groups_and_quantizes_the_rest():
    graph = graph_of(linear(), normal(4, 32))
    [outcome] = quantized(graph, FOUR)
    assert [row.reason for row in outcome.of("refused")] == ["its rows of 8 are no multiple of the group of 16"]
    assert [row.site for row in outcome.of("changed")] == ["0.weight"]


def test_refuses_a_model_that_has_convolutions_alone():
    graph = graph_of(nn.Conv2d(4, 4, 3), normal(2, 4, 8, 8))
    with pytest.raises(RecipeError, match="no site can be quantized") as refused:
        Quantize("int8-dynamic").plan(graph)
    assert "a convolution has no int8-dynamic kernel" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("quantize{kind=int3}", "unknown kind of quantization"),
        ("quantize{kind=int4,group=24}", "group cannot be 24"),
        ("quantize{kind=int4,sweeps=-1}", "cannot be negative"),
    ],
)
def test_refuses_options_that_make_no_sense(text, found):
    with pytest.raises(RecipeError, match=found):
        parse_pass(text)


def test_prints_and_parses_back():
    one = Quantize("int4", sweeps=0, group=64, embeddings=True, ignore=("a*",))
    assert parse_pass(format_pass(one)) == one


def test_ensures_sees_a_weight_that_left_its_grid():
    graph = graph_of(nn.Linear(32, 8), normal(4, 32))
    [outcome] = quantized(graph, EIGHT)
    with torch.no_grad():
        graph.sites[0].weight[0, 0] += 0.3 * graph.grids["weight"].scale[0, 0, 0]
    with pytest.raises(InternalError, match="left its 8-bit grid"):
        Quantize("int8-dynamic").ensures(graph, outcome)


def test_a_point_names_nodes_that_are_there():
    graph = graph_of(nn.Linear(4, 4), normal(2, 4))
    with pytest.raises(InternalError, match="there is no nothing"):
        round_activations(graph, [Point("nothing", (), Rounding("tensor"))])
    with pytest.raises(InternalError, match="there is no linear that x0 reads"):
        round_activations(graph, [Point("linear", ("x0",), Rounding("tensor"))])
    assert not graph.points


@pytest.mark.parametrize("text", [EIGHT, FOUR, "quantize{kind=int8,sweeps=0}"])
def test_a_capture_in_half_precision_gets_the_same_codes_and_roundings(text):
    graph, half = (graph_of(linear().to(kind), normal(4, 32).to(kind)) for kind in (torch.float32, torch.float16))
    quantized(graph, text.replace("}", ",targets=[0.weight]}"))
    graph.repeat_on(half)
    assert torch.equal(half.codes("0.weight"), graph.codes("0.weight"))
    assert half.points == graph.points != []
    feeds = {"x0": normal(4, 32)}
    given = {"x0": feeds["x0"].half()}
    gap = difference(graph.run, lambda _: {"y": half.run(given)["y"].float()}, feeds)
    assert gap < 0.2 * difference(unrounded(graph), graph.run, feeds) + 2e-3


def test_ranges_are_measured_on_a_model_whose_caches_have_become_smaller():
    source = ZooSource.open("tiny-gpt2", Options(window=WINDOW))
    graph = source.lower()
    text = 'channels{amount="heads=0.25",importance=magnitude,refit=false}', "quantize{kind=int8,sweeps=0,samples=4}"
    run_pipeline(graph, [parse_pass(one) for one in text], Context(source.calibration))
    assert graph.points
    exact = unrounded(graph)
    for feeds in source.workloads().values():
        assert 0 < difference(exact, graph.run, feeds) < 0.5
