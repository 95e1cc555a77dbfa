"""All sites learned at once from the dense model: what comes nearer, what stays, and what a killed run goes on from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.errors import DataError
from compressor.graph import Feeds, Graph, Port, lower
from compressor.passes import distill
from compressor.passes.fit import Fit
from compressor.passes.masks import nm_fraction
from compressor.passes.objectives import divergence
from compressor.pipeline import Context, Outcome, parse_pass, run_pipeline
from tests.compressor.tiny import Compute, graph_of, normal, residual, same, state

STEPS = 60


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten()).eval()


def batches(*sizes: int, shape: tuple[int, ...] = (16,)) -> list[Feeds]:
    return [{"x0": normal(n, *shape, seed=number)} for number, n in enumerate(sizes)]


def pruned(graph: Graph, options: str, given: list[Feeds], through: str = "model", **context: Any) -> Outcome:
    one = parse_pass(f"sparsify{{pattern=2:4,through={through},{options}}}")
    return run_pipeline(graph, [one], Context(lambda n: given, **context))[0]


def far(graph: Graph, dense: Callable[[Tensor], Tensor], X: Tensor, is_logits: bool = True) -> float:
    made, wanted = graph.run({"x0": X})["y"], dense(X).detach()
    return float(divergence(made, wanted, 1.0) if is_logits else (made - wanted).square().mean())


@pytest.mark.parametrize("is_logits", [True, False])
def test_new_samples_come_out_nearer_to_the_dense_model_and_the_pattern_is_kept(is_logits):
    X, errors = normal(500, 16, seed=99), []
    for steps in (0, STEPS):
        graph, dense = graph_of(residual(), normal(4, 16)), residual()
        outcome = pruned(graph, f"reconstruct={steps}", batches(64, 64), is_logits=is_logits)
        errors.append(far(graph, dense, X, is_logits))
    assert errors[1] < 0.7 * errors[0]
    for site in graph.sites:
        if site.name in {row.site for row in outcome.of("changed")}:
            assert nm_fraction(site.weight.detach(), 2, 4) == (128, 128)
    assert f"learned from the dense model for {STEPS} steps on 128 calibration samples;" in outcome.notes[-1]
    assert ("divergence in nats" if is_logits else "squared error") in outcome.notes[-1]


def test_weights_that_are_not_named_and_statistics_of_batch_normalizations_stay():
    model = convolutions()
    graph = graph_of(model, normal(2, 4, 6, 6))
    before = state(graph)
    pruned(graph, "reconstruct=8,refit=0,targets=[3.weight]", batches(32, shape=(4, 6, 6)))
    after = state(graph)
    stay = {name for name, x in before.items() if torch.equal(x, after[name])}
    assert stay == {"0.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_a_model_that_asks_for_no_gradients_learns_as_well():
    models = residual(), residual().requires_grad_(False)
    graphs = [graph_of(model, normal(4, 16)) for model in models]
    for graph in graphs:
        pruned(graph, "reconstruct=4", batches(40))
    assert same(*map(state, graphs))


def test_the_same_seed_gives_the_same_bytes():
    graphs = [graph_of(residual(), normal(4, 16)) for _ in range(2)]
    for graph in graphs:
        pruned(graph, "reconstruct=6", batches(40))
    assert same(*map(state, graphs))


def test_steps_that_do_harm_are_taken_back(monkeypatch):
    monkeypatch.setattr(distill, "RATE", 1e4)
    plain, harmed = (graph_of(residual(), normal(4, 16)) for _ in range(2))
    pruned(plain, "reconstruct=0", batches(40))
    outcome = pruned(harmed, "reconstruct=8", batches(40))
    assert same(state(plain), state(harmed))
    assert outcome.notes[-1].endswith("best after step 0")


def test_a_batch_is_cut_into_pieces_from_all_over_it_and_what_its_samples_share_stays_whole(monkeypatch):
    monkeypatch.setattr(distill, "ROWS", 8)
    graph = graph_of(residual(), normal(4, 16))
    given: list[Feeds] = [{"x0": torch.arange(20.0)[:, None].expand(20, 16), "scale": torch.ones(())}, *batches(44)]
    pieces = distill.Pieces.of(graph, given)
    assert pieces.at_step == 1
    assert [len(piece["x0"]) for piece in pieces.feeds] == [7, 7, 6, 8, 8, 7, 7, 7, 7]
    assert pieces.feeds[0]["x0"][:, 0].tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert pieces.feeds[0]["scale"].shape == ()


@pytest.mark.parametrize(
    ("n", "most_values", "expected"),
    [(64, 1 << 25, (8, 1)), (64, 5, (1, 8)), (64, 8, (2, 4)), (4, 1 << 25, (1, 1)), (20000, 1 << 25, (1000, 1))],
)
def test_a_step_learns_from_an_eighth_of_the_samples_at_most_and_large_outputs_go_through_in_parts(
    monkeypatch, n, most_values, expected
):
    monkeypatch.setattr(distill, "MOST_VALUES", most_values)
    pieces = distill.Pieces.of(graph_of(residual(), normal(4, 16)), batches(n))
    assert (len(pieces.feeds[0]["x0"]), pieces.at_step) == expected


def test_a_graph_that_views_its_input_is_given_pieces_that_can_be_viewed():
    model = Compute(lambda self, x: (x.view(-1, 16) @ self.w).view(*x.shape[:-1], 4), w=normal(16, 4))
    graph = graph_of(model, normal(2, 5, 16))
    given = batches(40, shape=(5, 16))
    assert "40 calibration samples" in pruned(graph, "reconstruct=2,targets=[w]", given).notes[-1]


def test_batches_of_other_lengths_are_learned_from_as_well():
    model, axes = residual().eval(), {0: "batch", 1: "length"}
    example = {"x0": normal(2, 5, 16)}
    graph = lower(model, lambda x: (model(x),), example, (Port("x0", axes),), (Port("y", axes),))
    given = [{"x0": normal(16, length, 16, seed=length)} for length in (3, 5, 9)]
    assert "48 calibration samples" in pruned(graph, "reconstruct=4", given).notes[-1]


def test_an_eighth_is_held_out_and_of_many_samples_less():
    graph = graph_of(residual(), normal(4, 16))
    assert distill.Pieces.of(graph, batches(64)).held_out == 1 / 8
    assert distill.Pieces.of(graph, batches(80_000)).held_out == 8192 / 80_000


def test_a_graph_that_takes_one_number_of_samples_learns_from_whole_batches():
    graph = graph_of(residual(), normal(8, 16), dynamic=[{}])
    pieces = distill.Pieces.of(graph, batches(8, 8, 8))
    assert [len(piece["x0"]) for piece in pieces.feeds] == [8, 8, 8]
    assert pieces.at_step == 1
    assert "24 calibration samples" in pruned(graph, "reconstruct=2", batches(8, 8, 8)).notes[-1]


def test_one_sample_cannot_be_learned_from_and_held_out():
    graph = graph_of(residual(), normal(4, 16))
    with pytest.raises(DataError, match=r"distilling needs samples(.|\n)*1 calibration samples(.|\n)*--reconstruct 0"):
        pruned(graph, "reconstruct=4", batches(1))


def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_bytes(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    whole, again = (graph_of(residual(), normal(4, 16)) for _ in range(2))
    expected = pruned(whole, "reconstruct=16", batches(64))
    step, taken = Fit._descend, []

    def dies_at(at: int) -> Callable[[Fit, int], float]:
        def descend(self: Fit, number: int) -> float:
            taken.append(number)
            if number == at:
                raise Killed
            return step(self, number)

        return descend

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_descend", dies_at(11))
        with pytest.raises(Killed):
            pruned(graph_of(residual(), normal(4, 16)), "reconstruct=16", batches(64), kept=tmp_path)
        taken.clear()
        patch.setattr(Fit, "_descend", dies_at(99))
        assert pruned(again, "reconstruct=16", batches(64), kept=tmp_path).notes == expected.notes
    assert taken == [10, 11, 12, 13, 14, 15]
    assert same(state(whole), state(again))
    other = graph_of(residual(), normal(4, 16))
    pruned(other, "reconstruct=14", batches(64), kept=tmp_path)  # its own steps, not those that are kept
    fresh = graph_of(residual(), normal(4, 16))
    pruned(fresh, "reconstruct=14", batches(64))
    assert same(state(fresh), state(other))


@pytest.mark.parametrize(
    ("make", "shape", "target", "expected"),
    [
        (residual, (5, 16), "1.fc.weight", "model"),
        (residual, (16,), "1.fc.weight", "blocks"),
        (convolutions, (4, 6, 6), "3.weight", "blocks"),
    ],
)
def test_auto_goes_through_models_that_say_something_of_each_token_and_else_through_blocks(
    make, shape, target, expected
):
    made = {}
    for through in ("auto", "model", "blocks"):
        graph = graph_of(make(), normal(2, *shape))
        pruned(graph, f"reconstruct=4,targets=[{target}]", batches(16, 16, shape=shape), through)
        made[through] = state(graph)
    assert [name for name in ("model", "blocks") if same(made["auto"], made[name])] == [expected]
