"""Running statistics of batch normalizations: moved by what pruning changes, and only where that helps."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.calibrate import Block
from compressor.graph import Graph
from compressor.passes.batchnorm import said
from compressor.pipeline import Context, Row, parse_pass, run_pipeline
from compressor.statistics import Moments
from tests.compressor.tiny import Compute, graph_of, normal

BATCHES = [{"x0": normal(8, 4, 6, 6, seed=seed) + 0.3} for seed in range(6)]
LEARNED = BATCHES[:4] + BATCHES[5:]  # every fifth is held out
MAGNITUDE = 'sparsify{pattern=2:4,method=magnitude,refit=1,bias=false,match=pruned,batchnorm=true,targets=["*weight"]}'


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3),
    )  # fmt: skip


def captured(model: nn.Module) -> Graph:
    """With the statistics of the data, as a trained network has them."""
    model.train()
    with torch.no_grad():
        for _ in range(100):
            model(torch.cat([batch["x0"] for batch in BATCHES]))
    return graph_of(model, BATCHES[0]["x0"])


def prune(graph: Graph, text: str = MAGNITUDE) -> dict[str, Row]:
    [outcome] = run_pipeline(graph, [parse_pass(text)], Context(lambda n: BATCHES))
    return {row.site: row for row in outcome.rows}


def read_by(model: nn.Module, at: int) -> Tensor:
    """What the module at a position reads, of the batches that are learned from, by channel."""
    with torch.no_grad():
        x = model[:at](torch.cat([batch["x0"] for batch in LEARNED]))  # type: ignore[index]
    return x.movedim(1, 0).flatten(1)


def statistics(module: Any) -> tuple[Tensor, Tensor]:
    return module.running_mean.clone(), module.running_var.clone()


# *** moments ***


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 50))
def test_moments_do_not_depend_on_how_values_are_divided(sizes, seed):
    x = normal(sum(sizes), 3, 4, seed=seed) + 5
    found = Moments()
    for part in x.split(sizes):
        found.add(part)
    flat = x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(found.mean(), flat.mean(1))
    torch.testing.assert_close(found.variance(), flat.var(1, correction=0))


# *** the correction ***


def test_statistics_move_by_the_difference_between_pruned_and_dense(monkeypatch):
    monkeypatch.setattr(Block, "held_out_error", falling())
    model = network()
    graph = captured(model)
    before = [statistics(model[at]) for at in (1, 4)]
    dense = [read_by(model, at) for at in (1, 4)]
    rows = prune(graph)
    assert rows["0.weight"].numbers["corrects_batchnorm"] == 1
    for at, (mean, variance), z in zip((1, 4), before, dense, strict=True):
        x = read_by(model, at)  # the second reads what the first, corrected, makes
        torch.testing.assert_close(model[at].running_mean, mean + x.mean(1) - z.mean(1), atol=1e-5, rtol=1e-4)
        ratio = x.var(1) / z.var(1)
        torch.testing.assert_close(model[at].running_var, variance * ratio, atol=1e-5, rtol=1e-4)


def falling() -> Any:
    """Every state is better than the one before."""
    errors = iter(range(1000, 0, -1))
    return lambda block: float(next(errors))


def test_a_correction_that_does_not_help_is_taken_back(monkeypatch):
    monkeypatch.setattr(Block, "held_out_error", lambda block: 1.0)
    model = network()
    graph = captured(model)
    before = [*statistics(model[1]), *statistics(model[4])]
    rows = prune(graph)
    assert rows["3.weight"].numbers["corrects_batchnorm"] == 0
    assert all(torch.equal(x, y) for x, y in zip(before, [*statistics(model[1]), *statistics(model[4])], strict=True))


def test_held_out_samples_are_asked_as_often_as_the_plan_says_and_about_nothing_twice(monkeypatch):
    asked, error = [], Block.held_out_error
    monkeypatch.setattr(Block, "held_out_error", lambda block: asked.append(block) or error(block))
    one, graph = parse_pass("sparsify{pattern=2:4,targets=[0.weight,3.weight]}"), captured(network())
    run_pipeline(graph, [one], Context(lambda n: BATCHES))
    assert len(asked) == 2 * one.effort(graph).checks == 8  # type: ignore[attr-defined]


def test_it_brings_the_outputs_nearer_to_those_of_the_dense_model(monkeypatch):
    # Alone: without the refit, which would leave little to correct, and without which it is not tried.
    monkeypatch.setattr("compressor.passes.sparsify.decide", lambda options, graph, sites: options)
    alone = MAGNITUDE.replace("magnitude,refit=1", "wanda,refit=0")
    errors = []
    for corrects in ("false", "true"):
        model = network()
        graph = captured(model)
        x = normal(64, 4, 6, 6, seed=99) + 0.3
        wanted = graph.run({"x0": x})["y"]
        prune(graph, alone.replace("batchnorm=true", f"batchnorm={corrects}"))
        errors.append(float((graph.run({"x0": x})["y"] - wanted).square().sum()))
    assert errors[1] < 0.95 * errors[0]


def test_a_model_without_batch_normalization_is_pruned_as_without_the_option():
    def weights(corrects: str) -> tuple[Tensor, dict[str, float]]:
        torch.manual_seed(0)
        graph = graph_of(
            nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)), BATCHES[0]["x0"]
        )
        rows = prune(graph, MAGNITUDE.replace("batchnorm=true", f"batchnorm={corrects}"))
        return graph.sites[0].weight.detach().clone(), rows["0.weight"].numbers

    (W, numbers), (V, _) = weights("true"), weights("false")
    assert torch.equal(W, V)
    assert "corrects_batchnorm" not in numbers


def test_a_normalization_that_is_used_twice_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(Block, "held_out_error", falling())
    torch.manual_seed(0)

    def twice(self, x):
        return self.norm(self.b(self.norm(self.a(x)))).mean((2, 3))

    a, b = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
    model = Compute(twice, a=a, b=b, norm=nn.BatchNorm2d(8))
    graph = graph_of(model, BATCHES[0]["x0"])
    before = statistics(model.norm)
    assert "corrects_batchnorm" not in prune(graph)["a.weight"].numbers
    assert torch.equal(torch.cat(before), torch.cat(statistics(model.norm)))


def test_it_says_behind_how_many_weights_statistics_moved_or_that_there_were_none():
    assert said([{"corrects_batchnorm": 1.0}, {"corrects_batchnorm": 0.0}, {}]) == (
        "batchnorm: running statistics were moved behind 1 of 2 weights, and did not help behind the others"
    )
    torch.manual_seed(0)
    graph = graph_of(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 3)), BATCHES[0]["x0"])
    [outcome] = run_pipeline(graph, [parse_pass(MAGNITUDE)], Context(lambda n: BATCHES))
    assert not any(
        "batchnorm" in note for note in outcome.notes
    )  # on by default: a model that has none is told nothing
    assert said([{}]) == "batchnorm: no batch normalization reads what was pruned"


@pytest.mark.parametrize("match", ["pruned", "dense", "auto"])
def test_it_goes_with_every_way_to_match(match):
    graph = captured(network())
    rows = prune(graph, f'sparsify{{pattern=0.7,bias=true,match={match},batchnorm=true,targets=["*weight"]}}')
    assert rows["0.weight"].numbers["corrects_batchnorm"] in (0.0, 1.0)
    assert all(torch.isfinite(x).all() for x in graph.module.buffers())


def test_channels_take_it_too():
    graph = captured(network())
    text = "channels{amount=0.5,importance=magnitude,refit=false,batchnorm=true}"
    [outcome] = run_pipeline(graph, [parse_pass(text)], Context(lambda n: BATCHES))
    assert any("corrects_batchnorm" in row.numbers for row in outcome.rows)
    assert outcome.notes[-1].startswith("batchnorm: running statistics were moved behind")
