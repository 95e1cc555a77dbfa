"""The pass `sparsify` on graphs small enough to check by hand, and its methods in order on a trained GPT-2."""

import dataclasses
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import DataError, InternalError, RecipeError
from compressor.graph import Graph
from compressor.passes.gates import NOBODY_TO_ASK, NOT_BY_LOSS
from compressor.passes.masks import nm_fraction
from compressor.passes.methods import METHODS
from compressor.passes.sparsify import Sparsify
from compressor.pattern import NM, parse_pattern
from compressor.pipeline import Context, Outcome, Row, parse_pass, run_pipeline
from tests.compressor.tiny import Compute, graph_of, normal, residual
from tests.trained import lowered, restored

PATTERNS = ("2:4", "1:4", "3:4", "4:8", "0.5", "0.7")


def context(graph: Graph, n: int = 4, seed: int = 0, scale: Tensor | None = None) -> Context:
    """n batches of normal noise in the shapes of the graph's example; scale is multiplied onto the last axis."""

    def batches(samples: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [
            {
                name: torch.randn(x.shape, generator=generator) * (1 if scale is None else scale)
                for name, x in graph.example.items()
            }
            for _ in range(n)
        ]

    return Context(batches)


def prune(graph: Graph, text: str, **options: Any) -> dict[str, Row]:
    """Run the pass as the pipeline does, `verify` and `ensures` included; its rows by site."""
    [outcome] = run_pipeline(graph, [parse_pass(text)], context(graph, **options))
    return {row.site: row for row in outcome.rows}


def gpt2_conv1d(d: int, m: int) -> nn.Module:
    """GPT-2's layout: the weight stored as (d, m)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, d), self.weight).view(*x.shape[:-1], m)

    return Compute(forward, weight=normal(d, m), bias=torch.zeros(m))


LAYERS = {
    "linear": (lambda: nn.Linear(32, 12), normal(24, 32)),
    "GPT-2's Conv1D": (lambda: gpt2_conv1d(32, 12), normal(4, 6, 32)),
    "conv": (lambda: nn.Conv2d(16, 12, 3, padding=1), normal(3, 16, 5, 5)),
    "grouped conv": (lambda: nn.Conv2d(16, 12, 3, groups=2, padding=1), normal(3, 16, 5, 5)),
}


class Sum(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


@cache
def captured(kind: str) -> tuple[Graph, Tensor]:
    torch.manual_seed(0)
    make, x = LAYERS[kind]
    graph = graph_of(make(), x)
    return graph, graph.sites[0].weight.detach().clone()


def layer(kind: str) -> Graph:
    """One layer with its first weights; captured once for all tests."""
    graph, weight = captured(kind)
    graph.sites[0].weight.data.copy_(weight)
    return graph


def n_zeros(weight: Any) -> int:
    return int((weight == 0).sum())


def along_contracted(graph: Graph) -> Tensor:
    [site] = graph.sites
    return site.weight.detach().movedim(site.axis, -1)


# *** patterns, methods, layouts ***


@pytest.mark.parametrize("refit", [0, 10])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_holds_its_pattern_along_the_contracted_axis(kind, pattern, method, refit):
    graph = layer(kind)
    [row] = prune(graph, f'sparsify{{pattern={pattern},method={method},refit={refit},targets=["*weight"]}}').values()
    W, asked = along_contracted(graph), parse_pattern(pattern)
    assert (row.status, row.asked) == ("changed", pattern)
    if isinstance(asked, NM):
        good, total = nm_fraction(W, asked.n, asked.m)
        assert good == total
        assert (W == 0).float().mean() == pytest.approx(1 - asked.n / asked.m)
    else:
        assert (W == 0).float().mean() == pytest.approx(asked.sparsity, abs=0.02)
    assert row.numbers["sparsity"] == pytest.approx((W == 0).float().mean().item())


def test_magnitude_keeps_the_two_largest_of_four_and_leaves_them_as_they_were():
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -4.0, 3.0, 2.0, -5.0, 0.5, 0.1, -6.0]])
    prune(graph_of(model, normal(2, 8)), 'sparsify{pattern=2:4,method=magnitude,refit=0,targets=["*t"]}')
    assert model.weight.tolist() == [[0.0, -4.0, 3.0, 0.0, -5.0, 0.0, 0.0, -6.0]]


def test_magnitude_of_a_conv_groups_its_input_channels_at_each_kernel_position():
    model = nn.Conv2d(4, 1, (1, 2), bias=False)
    first, second = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([8.0, 7.0, 6.0, 5.0])
    model.weight.data = torch.stack([first, second], dim=-1).view(1, 4, 1, 2)
    prune(graph_of(model, normal(2, 4, 3, 3)), 'sparsify{pattern=2:4,method=magnitude,refit=0,targets=["*t"]}')
    assert model.weight[0, :, 0, 0].tolist() == [0, 0, 3, 4]
    assert model.weight[0, :, 0, 1].tolist() == [8, 7, 0, 0]


def test_wanda_weighs_a_weight_by_what_its_input_brings():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    scale = torch.tensor([100.0, 10.0, 0.1, 0.1])
    graph = graph_of(model, normal(8, 4))
    prune(graph, 'sparsify{pattern=2:4,method=wanda,refit=0,targets=["*t"]}', scale=scale)
    assert model.weight.tolist() == [[1.0, 2.0, 0.0, 0.0]]


def test_wanda_takes_a_ratio_from_every_row_and_magnitude_from_the_whole():
    W = torch.cat([torch.full((1, 8), 10.0), torch.full((1, 8), 1.0)]) + torch.arange(8)
    zeros = {}
    for method in ("wanda", "magnitude"):
        model = nn.Linear(8, 2, bias=False)
        model.weight.data = W.clone()
        prune(graph_of(model, normal(9, 8)), f'sparsify{{pattern=0.5,method={method},refit=0,targets=["*t"]}}')
        zeros[method] = (model.weight == 0).sum(1).tolist()
    assert zeros["wanda"] == [4, 4]
    assert zeros["magnitude"][1] > 4


def test_a_global_ratio_takes_more_from_the_smaller_weights_and_is_exact_over_all():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    model[0].weight.data = normal(16, 16)
    model[1].weight.data = normal(16, 16, seed=1) / 100
    rows = prune(graph_of(model, normal(3, 16)), "sparsify{pattern=0.5,method=magnitude,scope=global,refit=0}")
    assert [n_zeros(model[i].weight) for i in (0, 1)] == pytest.approx([0, 256], abs=20)
    assert sum(n_zeros(model[i].weight) for i in (0, 1)) == 256
    assert rows["2.weight"].status == "left"
    assert rows["1.weight"].numbers["sparsity"] > 0.9


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sparsify{pattern=2:4,scope=global,method=magnitude}", "scope=global needs a ratio, not 2:4"),
        ("sparsify{pattern=0.5,scope=global}", "scope=global cannot rank auto scores"),
        ("sparsify{pattern=2:4,scope=loss}", "scope=loss needs a ratio, not 2:4"),
        ("sparsify{pattern=2:4,dense=1}", "dense cannot be 1"),
        ("sparsify{pattern=0.5,dense=0.1}", "dense needs an N:M pattern, not 0.5"),
        ("sparsify{pattern=2:4,loss_refit=-1}", "cannot be negative"),
        ("sparsify{pattern=0.96,scope=loss}", "scope=loss cannot remove 96.0% of all weights"),
        ("sparsify{pattern=0.5,method=wand}", "unknown method 'wand'"),
        ("sparsify{pattern=0.5,scope=globl}", "unknown scope 'globl'"),
        ("sparsify{pattern=0.5,refit=-1}", "refit, loss_refit, damping and reconstruct cannot be negative"),
        ("sparsify{pattern=0.5,reconstruct=-1}", "refit, loss_refit, damping and reconstruct cannot be negative"),
        ("sparsify{pattern=0.5,through=layers}", "unknown through 'layers'"),
        ("sparsify{pattern=0.5,match=dence}", "unknown match 'dence'"),
        ("sparsify{pattern=0.5,samples=0}", "samples and iterations are at least 1"),
        ("sparsify{pattern=0.5,iterations=0}", "samples and iterations are at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(text, what):
    with pytest.raises(RecipeError, match=what):
        parse_pass(text)


def test_by_loss_more_is_taken_where_the_output_feels_it_less_and_the_total_is_exact():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    for at, scale in ((0, 1.0), (1, 1.0), (2, 3.0)):
        model[at].weight.data = normal(*model[at].weight.shape, seed=at) * scale
    model[1].weight.data[:, 8:] = 0  # half of what the first computes is read by nobody
    graph = graph_of(model, normal(64, 16))
    rows = prune(graph, "sparsify{pattern=0.5,scope=loss,targets=[0.weight,2.weight]}")
    assert n_zeros(model[0].weight[8:]) == 8 * 16
    zeros = [n_zeros(model[i].weight) for i in (0, 2)]
    assert sum(zeros) == pytest.approx(0.5 * (256 + 64), abs=2)
    assert rows["0.weight"].numbers["sparsity"] > 0.5 > rows["2.weight"].numbers["sparsity"]
    assert rows["2.weight"].numbers["foretold_loss"] > 0


@pytest.mark.parametrize(("pattern", "scope"), [("2:4", "site"), ("0.96", "site"), ("0.5", "loss")])
def test_the_scope_auto_is_by_loss_where_a_ratio_can_be(pattern, scope):
    x = normal(64, 8)
    weights = []
    for one in (scope, "auto"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
        prune(graph_of(model, x), f'sparsify{{pattern={pattern},scope={one},targets=["*t"]}}')
        weights.append([model[0].weight, model[1].weight])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_scope_auto_takes_the_same_from_every_convolution_and_says_why():
    one = 'sparsify{pattern=0.5,scope=%s,loss_refit=2,targets=["*t"]}'
    weights, notes = [], []
    for scope in ("site", "auto", "loss"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 3))
        graph = graph_of(model, normal(4, 4, 7, 7))
        [outcome] = run_pipeline(graph, [parse_pass(one % scope)], context(graph))
        weights.append([site.weight for site in graph.sites])
        notes.append(NOT_BY_LOSS in outcome.notes)
    assert notes == [False, True, False]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])


def test_ensures_sees_that_a_share_of_all_is_missed():
    graph = graph_of(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), normal(64, 16))
    one = parse_pass('sparsify{pattern=0.5,scope=loss,targets=["*t"]}')
    outcome = one.run(graph, context(graph))
    one.ensures(graph, outcome)
    graph.sites[0].weight.data[:, :4] = 1
    with pytest.raises(InternalError, match="50% were promised"):
        one.ensures(graph, outcome)


def test_what_the_pattern_costs_most_stays_dense_within_its_budget():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8))
    for at, scale in ((0, 1.0), (1, 1e-3), (2, 1.0)):
        model[at].weight.data = normal(*model[at].weight.shape, seed=at) * scale
    graph = graph_of(nn.Sequential(Sum(model[0], model[1]), model[2]), normal(64, 16))
    before = model[0].weight.clone()
    rows = prune(graph, 'sparsify{pattern=2:4,dense=0.5,targets=["0.*"]}')
    assert torch.equal(model[0].weight, before)
    assert rows["0.first.weight"].status == "left"
    assert rows["0.first.weight"].reason == "among the 50% that 2:4 costs most"
    assert rows["0.second.weight"].status == "changed"
    assert n_zeros(model[1].weight) == 128


def test_a_budget_that_no_weight_fits_into_is_refused_with_the_least():
    graph = graph_of(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), normal(64, 16))
    with pytest.raises(RecipeError, match=r"no weight fits into dense=0\.2") as caught:
        parse_pass('sparsify{pattern=2:4,dense=0.2,targets=["*t"]}').plan(graph)
    assert caught.value.found == "the smallest, 0.weight, is 50.0% of those that are named"


def test_weighing_tells_what_each_site_gives_and_touches_none():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    graph = graph_of(model, normal(64, 16))
    before = model[0].weight.clone()
    one = parse_pass('sparsify{pattern=0.5,scope=loss,targets=["*t"]}')
    found = one.weigh(graph, context(graph))
    assert torch.equal(model[0].weight, before)
    assert [site.site for site in found] == ["0.weight", "1.weight"]
    assert all(sorted(site.losses) == list(site.losses) for site in found)
    given = sum(site.size * float(site.pattern) for site in found)
    assert given == pytest.approx(0.5 * (256 + 128))
    assert all(site.losses[0] < site.loss < site.losses[-1] for site in found)


# *** the bias ***


class Normalised(nn.Module):
    """A convolution whose outputs are normalised."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.norm.running_mean += normal(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def mean_output(graph: Graph, batches: list[dict[str, Tensor]]) -> Tensor:
    """By output channel, which is the axis of length 4."""
    Y = torch.cat([graph.run(batch)["y"] for batch in batches])
    return Y.movedim(Y.shape.index(4), 0).reshape(4, -1).mean(1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(8, 4), (50, 8)),
        (lambda: gpt2_conv1d(8, 4), (5, 10, 8)),
        (lambda: nn.Conv2d(8, 4, 3, padding=1, groups=2), (3, 8, 5, 5)),
        (Normalised, (3, 8, 5, 5)),
    ],
    ids=["linear", "GPT-2's Conv1D", "conv", "conv and batch norm"],
)
def test_with_its_bias_a_site_keeps_the_mean_of_its_outputs(make, shape):
    means = {}
    for bias in ("false", "true"):
        torch.manual_seed(0)
        model = make()
        graph = graph_of(model, normal(*shape))
        batches = [{"x0": x["x0"] + 1} for x in context(graph).calibration(4)]
        before = mean_output(graph, batches)
        one = parse_pass(f'sparsify{{pattern=2:4,match=pruned,batchnorm=false,bias={bias},targets=["*weight"]}}')
        run_pipeline(graph, [one], Context(lambda n: batches))  # noqa: B023
        means[bias] = (mean_output(graph, batches) - before).abs().max().item()
    assert means["true"] < 1e-5
    assert means["false"] > 3e-3


def test_without_refit_the_bias_stays():
    graph = graph_of(nn.Linear(8, 4), normal(50, 8))
    before = graph.module.state_dict()["bias"].clone()
    prune(graph, 'sparsify{pattern=2:4,method=sparsegpt,refit=0,targets=["*weight"]}')
    assert torch.equal(graph.module.state_dict()["bias"], before)


def test_a_bias_that_something_else_reads_too_stays_as_it_is():
    model = Compute(lambda self, x: F.linear(x, self.w, self.b) + self.b, w=normal(4, 8), b=normal(4))
    before = model.b.detach().clone()
    graph = graph_of(model, normal(6, 8))
    prune(graph, "sparsify{pattern=2:4,bias=true,targets=[w]}")
    assert graph.sites[0].offset is None
    assert torch.equal(model.b, before)


# *** dense targets and reconstruction ***


def output_error(options: str) -> tuple[float, dict[str, Row], nn.Module]:
    """Squared error of the output on fresh samples after pruning `residual` to 2:4, the rows, and what is left."""
    model = residual()
    graph, X = graph_of(model, normal(40, 16)), normal(500, 16, seed=9)
    before = graph.run({"x0": X})["y"]
    rows = prune(graph, f"sparsify{{pattern=2:4,damping=0.01,{options}}}", n=20)
    return (graph.run({"x0": X})["y"] - before).square().mean().item(), rows, model


def test_dense_targets_make_up_for_the_blocks_before():
    errors = {}
    for match in ("pruned", "dense"):
        torch.manual_seed(0)
        graph = graph_of(nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 4)), normal(200, 32))
        [batch] = context(graph, n=1).calibration(1)
        before = graph.run(batch)["y"]
        prune(graph, f"sparsify{{pattern=2:4,damping=0.001,match={match}}}", n=1)
        errors[match] = (graph.run(batch)["y"] - before).square().mean()
    assert errors["dense"] < 0.95 * errors["pruned"]


def convolutions(match: str, n: int) -> tuple[float, list[Row]]:
    """Squared error of the output on fresh samples after pruning three convolutions, and the rows of the last two."""
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())]
    graph, X = graph_of(nn.Sequential(*layers, nn.Conv2d(8, 4, 1)), normal(4, 8, 5, 5)), normal(64, 8, 5, 5, seed=9)
    before = graph.run({"x0": X})["y"]
    rows = prune(graph, f"sparsify{{pattern=2:4,match={match},targets=[2.*,4.*]}}", n=n)
    error = (graph.run({"x0": X})["y"] - before).square().mean().item()
    return error, [row for row in rows.values() if row.status == "changed"]


def test_auto_says_for_each_block_of_convolutions_what_it_matched_and_is_no_worse_than_pruned():
    error, rows = convolutions("auto", n=40)
    assert len(rows) == 2
    assert {row.numbers["matches_dense"] for row in rows} <= {0.0, 1.0}
    assert 1.0 in {row.numbers["matches_dense"] for row in rows}
    assert error <= convolutions("pruned", n=40)[0]


def test_where_one_batch_cannot_be_divided_the_report_says_that_nothing_is_tried():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval()
    graph = graph_of(model, normal(4, 8, 9, 9))
    notes = [
        parse_pass(f"sparsify{{pattern=2:4,{more}targets=[2.weight]}}").run(graph, context(graph, n=n)).notes
        for n, more in ((1, ""), (2, ""), (1, "match=pruned,batchnorm=false,"))
    ]
    assert notes[0] == (NOBODY_TO_ASK,)
    assert notes[1][0].startswith("batchnorm: running statistics were moved behind")
    assert notes[2] == ()


def test_auto_matches_pruned_where_one_batch_cannot_be_divided_and_where_nothing_is_a_convolution():
    assert convolutions("auto", n=1)[0] == convolutions("pruned", n=1)[0]
    linear, rows, _ = output_error("match=auto")
    assert linear == output_error("match=pruned")[0]
    assert not any("matches_dense" in row.numbers for row in rows.values())


@pytest.mark.parametrize("match", ["pruned", "dense", "auto"])
def test_reconstruction_lowers_the_error_and_keeps_the_pattern(match):
    error, rows, model = output_error(f"bias=true,match={match},through=blocks,reconstruct=40")
    assert error < 0.6 * output_error(f"bias=true,match={match}")[0]
    for row in rows.values():
        if row.status == "changed":
            assert nm_fraction(model.get_parameter(row.site).detach(), 2, 4) == (128, 128)
            assert row.numbers["held_out_error"] < 0.9 * row.numbers["held_out_error_before"]


def test_reconstruction_gives_the_same_bytes_each_time():
    first, second = (output_error("through=blocks,reconstruct=5")[2].state_dict() for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_steps_that_do_harm_are_taken_back(monkeypatch):
    without = output_error("match=dense")
    monkeypatch.setattr("compressor.passes.reconstruct.RATE", 1e4)
    error, rows, _ = output_error("match=dense,through=blocks,reconstruct=8")
    changed = [row.numbers for row in rows.values() if row.status == "changed"]
    assert all(numbers["held_out_error"] == numbers["held_out_error_before"] for numbers in changed)
    assert error == pytest.approx(without[0], rel=0.2)  # a fifth of the samples is held out


def test_what_other_blocks_read_and_weights_that_are_not_named_are_not_trained():
    model = residual()
    model[1].norm = model[0].norm
    before = {name: x.clone() for name, x in model.state_dict().items()}
    prune(graph_of(model, normal(40, 16)), "sparsify{pattern=2:4,through=blocks,reconstruct=5,ignore=[2.*]}", n=20)
    same = {name for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    assert same >= {"0.norm.weight", "0.norm.bias", "2.fc.weight", "3.weight", "3.bias"}
    assert not same & {"0.fc.weight", "1.fc.weight"}


# *** which sites ***


def mlp(*widths: int) -> nn.Sequential:
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Network(nn.Module):
    """A stem, a block with a weight that reads 6 channels, and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 1)
        self.narrow, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.narrow(F.relu(self.wide(F.relu(self.stem(x)))))).mean((2, 3)))


def statuses(model: nn.Module, x: Tensor, text: str) -> dict[str, str]:
    return {row.site.removesuffix(".weight"): row.status for row in parse_pass(text).plan(graph_of(model, x))}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {"stem": "left", "wide": "changed", "narrow": "refused", "head": "left"}),
        ("targets=[stem]", {"stem": "changed", "wide": "left", "narrow": "left", "head": "left"}),
        ('targets=["*.weight"]', {"stem": "changed", "wide": "changed", "narrow": "refused", "head": "changed"}),
        ('targets=["*",head]', {"stem": "left", "wide": "changed", "narrow": "refused", "head": "changed"}),
        ("ignore=[narrow]", {"stem": "left", "wide": "changed", "narrow": "left", "head": "left"}),
        ("targets=[stem,wide],ignore=[wide]", {"stem": "changed", "wide": "left", "narrow": "left", "head": "left"}),
    ],
)  # fmt: skip
def test_globs_choose_and_stem_and_head_must_be_named(options, expected):
    text = f"sparsify{{pattern=2:4{',' * bool(options)}{options}}}"
    assert statuses(Network(), normal(2, 4, 6, 6), text) == expected


def test_every_site_that_is_not_changed_says_why():
    rows = parse_pass("sparsify{pattern=2:4}").plan(graph_of(Network(), normal(2, 4, 6, 6)))
    reasons = {row.site: row.reason for row in rows}
    assert reasons == {
        "stem.weight": "the stem reads the input: dense unless named by --targets",
        "wide.weight": "",
        "narrow.weight": "its contracted axis has length 6, not a multiple of 4",
        "head.weight": "the head makes the scored output: dense unless named by --targets",
    }


def test_a_length_that_m_does_not_divide_takes_a_ratio():
    assert statuses(Network(), normal(2, 4, 6, 6), "sparsify{pattern=0.5}")["narrow"] == "changed"


@pytest.mark.parametrize(("option", "glob"), [("targets", "narow"), ("ignore", "hed.*"), ("targets", "Wide.weight")])
def test_a_glob_that_names_nothing_is_an_error_that_names_the_nearest(option, glob):
    text = f'sparsify{{pattern=2:4,{option}=["*","{glob}"]}}'
    with pytest.raises(RecipeError, match=f"no weight is named '{glob}'".replace("*", r"\*")) as refused:
        parse_pass(text).plan(graph_of(Network(), normal(2, 4, 6, 6)))
    assert refused.value.hint == {"narow": "narrow.weight", "hed.*": "head.weight", "Wide.weight": "wide.weight"}[glob]


def test_a_pattern_that_no_site_can_take_is_an_error_with_the_reasons():
    with pytest.raises(RecipeError, match="no site can take 2:4") as refused:
        parse_pass("sparsify{pattern=2:4,targets=[narrow]}").plan(graph_of(Network(), normal(2, 4, 6, 6)))
    assert "not a multiple of 4 (narrow.weight)" in str(refused.value)


def test_a_model_without_weights_is_an_error():
    with pytest.raises(RecipeError, match="no site can take 2:4") as refused:
        parse_pass("sparsify{pattern=2:4}").plan(graph_of(nn.ReLU(), normal(2, 4)))
    assert refused.value.found == "a model without weight sites"


def test_a_depthwise_conv_refuses_two_of_four_and_takes_a_ratio():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1))
    graph = graph_of(model, normal(2, 4, 5, 5))
    rows = {row.site: row for row in parse_pass("sparsify{pattern=2:4,targets=[1,2]}").plan(graph)}
    assert rows["1.weight"].status == "refused"
    assert rows["1.weight"].reason == "its contracted axis has length 1, not a multiple of 4"
    rows = prune(graph, "sparsify{pattern=0.5,targets=[1]}")
    assert rows["1.weight"].numbers["sparsity"] == pytest.approx(4 / 9)  # each channel rounds its nine weights


def test_two_input_channels_at_two_by_two_positions_are_no_group_of_four():
    model = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 8, 2), nn.Conv2d(8, 8, 1))
    rows = {
        row.site: row
        for row in parse_pass("sparsify{pattern=2:4,targets=[0,1]}").plan(graph_of(model, normal(2, 4, 5, 5)))
    }
    assert rows["1.weight"].reason == "its contracted axis has length 2, not a multiple of 4"
    assert rows["0.weight"].status == "changed"


class Tied(nn.Module):
    """An embedding whose weight also makes the logits."""

    def __init__(self):
        super().__init__()
        self.embedding, self.inner = nn.Parameter(normal(12, 8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        looked_up = F.embedding(x.abs().argmax(-1), self.embedding)
        return F.linear(self.inner(looked_up), self.embedding)


def test_a_tied_weight_is_left_unless_named():
    rows = prune(graph_of(Tied(), normal(5, 3, 12)), "sparsify{pattern=2:4}")
    assert rows["embedding"].reason == "tied to an embedding: dense unless named by --targets"


def test_a_tied_weight_that_is_named_is_decided_once_and_every_reader_sees_it():
    model = Tied()
    before = model.embedding.detach().clone()
    rows = prune(graph_of(model, normal(5, 3, 12)), "sparsify{pattern=2:4,targets=[embedding]}")
    assert [row.status for row in rows.values()].count("changed") == 1
    assert not torch.equal(model.embedding, before)
    assert nm_fraction(model.embedding.detach(), 2, 4) == (24, 24)


def test_a_weight_that_two_consumers_read_along_different_axes_is_refused():
    model = Compute(
        lambda self, x: self.inner(x) @ self.shared @ self.shared.T, shared=normal(8, 8), inner=nn.Linear(8, 8)
    )
    graph = graph_of(model, normal(3, 8))
    rows = prune(graph, 'sparsify{pattern=2:4,targets=["*","inner","shared"]}')
    assert (rows["shared"].status, rows["inner.weight"].status) == ("refused", "changed")
    assert rows["shared"].reason == "shared by consumers that contract it along different axes"
    assert n_zeros(model.shared) == 0


# *** what is left alone, what is refused ***


def test_sites_that_are_not_changed_keep_every_bit():
    model = Network()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    rows = prune(graph_of(model, normal(2, 4, 6, 6)), "sparsify{pattern=2:4,bias=false}")
    changed = {row.site for row in rows.values() if row.status == "changed"}
    assert {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])} == changed


def test_a_plan_touches_no_weight():
    model = Network()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    parse_pass("sparsify{pattern=2:4}").plan(graph_of(model, normal(2, 4, 6, 6)))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_plan_says_what_run_does():
    one, graph = parse_pass("sparsify{pattern=2:4}"), graph_of(Network(), normal(2, 4, 6, 6))
    planned, done = one.plan(graph), one.run(graph, context(graph)).rows
    assert [dataclasses.replace(row, numbers={}) for row in done] == planned


def test_not_a_number_in_a_weight_is_refused_before_anything_runs():
    graph = layer("linear")
    with torch.no_grad():
        graph.sites[0].weight[0, 0] = torch.nan
    with pytest.raises(InternalError, match="NaN"):
        prune(graph, 'sparsify{pattern=2:4,targets=["*t"]}')


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_never_fire_lose_their_weights_and_nothing_turns_into_nan(method):
    model = nn.Linear(8, 4, bias=False)
    alive = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 1])
    graph = graph_of(model, normal(16, 8))
    [row] = prune(graph, f'sparsify{{pattern=2:4,method={method},targets=["*t"]}}', scale=alive).values()
    assert model.weight.isfinite().all()
    if method != "magnitude":
        assert row.numbers["relative_error"] < 0.05  # damping shrinks the kept weights a little
        assert ((model.weight != 0) == alive.bool()).all()


def test_an_input_that_is_zero_everywhere_is_no_division_by_zero():
    graph = layer("linear")
    [row] = prune(graph, 'sparsify{pattern=2:4,targets=["*t"]}', scale=torch.zeros(32)).values()
    assert row.numbers["relative_error"] == 0
    assert graph.sites[0].weight.isfinite().all()


# *** the numbers ***


def test_the_relative_error_is_the_change_of_the_outputs_as_a_share_of_their_energy():
    graph = layer("linear")
    weight = graph.sites[0].weight
    before = weight.detach().clone()
    [row] = prune(graph, 'sparsify{pattern=2:4,bias=false,targets=["*t"]}').values()
    X = torch.cat([batch["x0"] for batch in context(graph).calibration(128)])
    expected = (X @ (weight.detach() - before).T).square().sum() / (X @ before.T).square().sum()
    assert row.numbers["relative_error"] == pytest.approx(expected.item(), rel=1e-4)
    assert row.numbers["rows"] == len(X)


def test_a_later_site_is_measured_on_what_the_pruned_ones_before_it_make():
    text = 'sparsify{pattern=2:4,method=magnitude,refit=1,bias=false,targets=["*t"]}'
    model: Any = mlp(16, 16, 16)
    dense, graph = model[2].weight.detach().clone(), graph_of(model, normal(12, 16))
    rows = prune(graph, text)
    X = torch.cat([batch["x0"] for batch in context(graph).calibration(128)])
    with torch.no_grad():
        seen = F.relu(model[0](X))  # model[0] is pruned by now
    change = (seen @ (model[2].weight.detach() - dense).T).square().sum() / (seen @ dense.T).square().sum()
    assert rows["2.weight"].numbers["relative_error"] == pytest.approx(change.item(), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_refit_lowers_the_error_of_every_method(method):
    errors = []
    for refit in (0, 10):
        graph = layer("linear")
        weight = graph.sites[0].weight
        before = weight.detach().clone()
        prune(graph, f'sparsify{{pattern=2:4,method={method},refit={refit},damping=0.01,targets=["*t"]}}')
        X = torch.cat([batch["x0"] for batch in context(graph).calibration(128)])
        errors.append((X @ (weight.detach() - before).T).square().sum().item())
    share = 1.0 if method in ("admm", "auto") else 0.97  # what ADMM ends with is nearly fitted already
    assert errors[1] < share * errors[0]


def test_magnitude_without_refit_asks_for_no_data():
    def refuse(n: int) -> list:
        raise AssertionError("data was asked for")

    one = Sparsify(pattern="2:4", method="magnitude", refit=0, targets=("*t",))
    assert not one.needs_data
    assert one.run(layer("linear"), Context(refuse)).of("changed")


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(kind, method):
    weights = []
    for _ in range(2):
        graph = layer(kind)
        prune(graph, f'sparsify{{pattern=2:4,method={method},targets=["*t"]}}')
        weights.append(graph.sites[0].weight.detach().clone())
    assert torch.equal(*weights)


# *** ensures ***


def outcome_of(graph: Graph, one: Sparsify) -> Outcome:
    outcome = one.run(graph, context(graph))
    one.ensures(graph, outcome)
    return outcome


def test_ensures_sees_one_weight_that_was_tampered_with():
    one, graph = Sparsify(pattern="2:4", targets=("*t",)), layer("linear")
    outcome = outcome_of(graph, one)
    weight = graph.sites[0].weight
    with torch.no_grad():
        weight[3, (weight[3] == 0).nonzero()[0]] = 1e-9
    with pytest.raises(InternalError, match="weight: 1 of 96 groups along axis 1 break 2:4"):
        one.ensures(graph, outcome)


def test_ensures_sees_the_right_pattern_on_the_wrong_axis():
    one, graph = Sparsify(pattern="2:4", targets=("*t",)), layer("conv")
    outcome = outcome_of(graph, one)
    with torch.no_grad():
        weight = graph.sites[0].weight
        weight.copy_(torch.randn_like(weight) * torch.tensor([1.0, 1, 0, 0]).repeat(3).view(-1, 1, 1, 1))
    with pytest.raises(InternalError, match="along axis 1 break 2:4"):
        one.ensures(graph, outcome)


@pytest.mark.parametrize("scope", ["site", "global"])
def test_ensures_sees_that_a_ratio_is_missed(scope):
    one = Sparsify(pattern="0.5", method="magnitude", refit=0, scope=scope, targets=("*t",))
    graph = layer("linear")
    outcome = outcome_of(graph, one)
    with torch.no_grad():
        graph.sites[0].weight[:8] = 1.0
    with pytest.raises(InternalError, match="50% were promised"):
        one.ensures(graph, outcome)


def test_ensures_sees_that_a_site_is_gone():
    one, graph = Sparsify(pattern="2:4", targets=("*t",)), layer("linear")
    outcome = outcome_of(graph, one)
    with pytest.raises(InternalError, match="says it changed"):
        one.ensures(graph_of(nn.ReLU(), normal(2, 4)), outcome)


# *** a trained model ***


def test_on_a_trained_gpt2_admm_loses_least_then_sparsegpt_and_magnitude_most():
    source, graph = lowered("tiny-gpt2")
    evaluation = source.evaluation(32)
    assert evaluation is not None
    errors, losses = {}, {}
    for method in METHODS.keys() - {"auto"}:
        with restored(graph):
            one = parse_pass(f"sparsify{{pattern=2:4,method={method},refit=1,samples=32}}")
            [outcome] = run_pipeline(graph, [one], Context(source.calibration))
            errors[method] = sum(row.numbers["relative_error"] for row in outcome.of("changed"))
            losses[method] = evaluation.score(graph.run).value
    assert errors["magnitude"] > 1.02 * errors["wanda"]
    assert errors["wanda"] > 1.02 * errors["sparsegpt"]
    assert errors["sparsegpt"] > 1.02 * errors["admm"]
    assert sorted(losses, key=losses.__getitem__)[:2] == ["admm", "sparsegpt"]


def test_on_a_trained_gpt2_a_share_divided_by_loss_costs_less_than_one_for_each():
    source, graph = lowered("tiny-gpt2")
    evaluation = source.evaluation(16)
    loss = {}
    for scope in ("site", "loss"):
        with restored(graph):
            one = Sparsify("0.6", scope=scope, samples=16)
            run_pipeline(graph, [one], Context(source.calibration))
            zeros = sum(n_zeros(site.weight) for site in graph.sites if site.role == "")
            assert zeros == pytest.approx(0.6 * sum(s.weight.numel() for s in graph.sites if s.role == ""), rel=1e-4)
            loss[scope] = evaluation.score(graph.run).value
    assert loss["loss"] < 0.97 * loss["site"]


def test_on_a_trained_gpt2_a_refit_to_the_loss_brings_the_outputs_nearer():
    source, graph = lowered("tiny-gpt2")
    evaluation = source.evaluation(16)
    loss = {}
    for steps in (0, 20):
        with restored(graph):
            one = Sparsify("2:4", loss_refit=steps, bias=True, samples=32)
            run_pipeline(graph, [one], Context(source.calibration))
            loss[steps] = evaluation.score(graph.run).value
    assert loss[20] < 0.99 * loss[0]


def test_a_refit_to_the_loss_does_not_give_up_outputs_that_it_cannot_feel():
    """Units that are saturated have no gradient, but only while they stay saturated."""
    errors = []
    for steps in (0, 100):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 4))
        model[0].bias.data[8:] = 30.0
        rows = prune(graph_of(model, normal(64, 16)), f"sparsify{{pattern=2:4,loss_refit={steps},targets=[0.weight]}}")
        errors.append(rows["0.weight"].numbers["relative_error"])
    assert errors[0] < errors[1] < 3 * errors[0]


def test_too_few_rows_for_the_columns_of_a_site_are_refused_with_the_least():
    x = normal(2, 128)
    graph = graph_of(nn.Sequential(nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 2)), x)
    one = parse_pass("sparsify{pattern=2:4,targets=[0.weight]}")
    with pytest.raises(DataError, match=r"too few calibration samples for 0\.weight") as caught:
        one.run(graph, Context(lambda n: [{"x0": normal(1, 128)}]))
    assert caught.value.found == "1 rows for 128 columns, where 2 are the least"
    outcome = one.run(graph, Context(lambda n: [{"x0": normal(2, 128)}]))
    assert [row.site for row in outcome.of("changed")] == ["0.weight"]
    assert (
        "damping: weights with more columns than calibration has rows: 1; their Gram matrices are singular, "
        "and up to 100% of each input's energy was added"
    ) in outcome.notes


def test_the_report_says_which_inputs_calibration_never_changed_and_nothing_where_all_is_well():
    graph, one = layer("linear"), parse_pass('sparsify{pattern=2:4,targets=["*t"]}')
    outcome = one.run(graph, context(graph, scale=torch.tensor([1.0, 0, 0, 1] * 8)))
    said = (
        "damping: inputs that never change on calibration data: 16, of 1 weights; what reads them was the first to go"
    )
    assert said in outcome.notes
    assert outcome.of("changed")[0].numbers["silent_inputs"] == 16
    graph = layer("linear")
    assert not any("damping" in note for note in one.run(graph, context(graph)).notes)
