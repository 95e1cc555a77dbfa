"""A plan says what export would do, and touches nothing."""

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.commands import estimate
from compressor.commands.planning import plan
from compressor.errors import DataError, RecipeError
from compressor.pipeline import Effort, parse_pass
from tests.compressor.tiny import graph_of, normal

MAGNITUDE = "export | sparsify{pattern=2:4,method=magnitude,refit=0}"


class Recurrent(nn.Module):
    """An LSTM, whose weights are no sites, a layer behind it, and a head."""

    def __init__(self):
        super().__init__()
        self.lstm, self.inner, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.lstm(x)[0][:, -1]))


@pytest.fixture(scope="module")
def recurrent():
    torch.manual_seed(0)
    return Recurrent(), torch.randn(2, 5, 8)


def statuses(model: object, recipe: str) -> dict[str, str]:
    return {site.name: site.status for site in plan(model, recipe).sites}


def test_what_nobody_knows_how_to_change_is_refused_when_everything_is_asked_for(recurrent):
    found = statuses(recurrent, MAGNITUDE)
    assert found == {
        "inner.weight": "changed",
        "head.weight": "left",
        "lstm.weight_ih_l0": "refused",
        "lstm.weight_hh_l0": "refused",
    }


@pytest.mark.parametrize("options", ["targets=[inner]", 'ignore=["lstm*"]', 'ignore=["lstm.weight_?h_l0"]'])
def test_it_is_left_when_something_else_is_asked_for(recurrent, options):
    found = statuses(recurrent, MAGNITUDE.replace("}", f",{options}}}"))
    assert found["lstm.weight_ih_l0"] == found["lstm.weight_hh_l0"] == "left"
    assert found["inner.weight"] == "changed"


def test_naming_only_what_cannot_be_changed_says_why(recurrent):
    with pytest.raises(RecipeError, match="no site can take 2:4") as refused:
        plan(recurrent, MAGNITUDE.replace("}", ',targets=["lstm*"]}'))
    assert "lstm" in str(refused.value.found)


def test_a_plan_touches_no_weight_and_writes_nothing(recurrent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {name: x.clone() for name, x in recurrent[0].state_dict().items()}
    plan(recurrent, MAGNITUDE)
    assert all(torch.equal(x, before[name]) for name, x in recurrent[0].state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_calibration_costs_nothing_to_speak_of(recurrent):
    found = plan(recurrent, MAGNITUDE)
    assert (found.cost, found.calibration) == (None, "none is needed")
    assert found.evaluation == "nothing: the data has no labels"
    assert found.n_changed == 1
    assert found.share_changed == pytest.approx(128 / (128 + 32 + 2 * 256))


def test_a_plan_with_calibration_is_measured_on_a_few_samples(monkeypatch):
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 4))
    asked = []
    made = compressor.Model(model, torch.randn(2, 32), calibration=[torch.randn(4, 32) for _ in range(16)])
    calibration = compressor.models.python.ModuleSource.calibration  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "compressor.models.python.ModuleSource.calibration", lambda self, n: asked.append(n) or calibration(self, n)
    )
    found = plan(made, "export | sparsify{pattern=2:4,samples=64}")
    assert asked == [estimate.SAMPLE]
    assert re.fullmatch(r"up to 64 samples from .*inputs that Sequential brings", found.calibration)
    weights = 4 * sum(x.numel() for x in model.parameters())
    assert found.cost is not None
    assert found.cost.memory > weights + 4 * 64 * 64
    assert 0 < found.cost.seconds < 60


def test_a_plan_says_how_much_is_learned_and_how_long_it_takes_and_trains_nothing():
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 4))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    made = compressor.Model(model, torch.randn(2, 32), calibration=[torch.randn(40, 32)])
    found = plan(made, MAGNITUDE + " | recover{method=distill,epochs=2,batch=4}")
    assert re.fullmatch(
        r"about \d+ s for 18 steps of 4 on 40 samples that .* brings, 4 of them held out", found.training
    )
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(DataError, match="finetune needs labels"):
        plan(made, MAGNITUDE + " | recover{method=finetune}")


def test_the_estimate_grows_with_the_samples():
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 4))
    made = compressor.Model(model, torch.randn(2, 256), calibration=[torch.randn(64, 256) for _ in range(16)])
    few, many = (plan(made, f"export | sparsify{{pattern=2:4,samples={n}}}").cost for n in (8, 8192))
    assert few is not None
    assert many is not None
    assert many.memory > 2 * few.memory
    assert many.seconds > few.seconds


def test_gradients_cost_time_and_memory(monkeypatch):
    monkeypatch.setattr(estimate, "_rate", lambda: 1e9)
    plain, felt = (plan("tiny-resnet", f"export | {UNASKED},samples=64{more}}}").cost for more in FELT)
    assert felt.seconds > 1.2 * plain.seconds
    assert felt.memory > plain.memory


FELT = ("", ",loss_refit=20")
UNASKED = "sparsify{pattern=2:4,match=pruned,batchnorm=false"


@pytest.mark.parametrize(
    ("text", "effort"),
    [
        ("sparsify{pattern=2:4}", Effort()),
        ("sparsify{pattern=2:4,match=dense}", Effort(is_beside=True)),
        ("sparsify{pattern=2:4,through=blocks,reconstruct=64}", Effort(is_beside=True, checks=9, steps=64)),
        ("sparsify{pattern=2:4,through=model,reconstruct=10}", Effort(distilled=10, rows=1024)),
        ("sparsify{pattern=2:4,permute=true}", Effort(observed=32)),
        ("sparsify{pattern=2:4,permute=true,method=magnitude}", Effort()),
        ("channels{amount=0.5,samples=64}", Effort(observed=64)),
    ],
)
def test_a_pass_says_what_it_does_with_each_block(text, effort):
    assert parse_pass(text).effort(graph_of(nn.Linear(8, 4), normal(2, 8))) == effort


@pytest.mark.parametrize(
    ("options", "effort"),
    [
        ("batchnorm=false", Effort(solves=2, is_beside=True, checks=2)),
        ("batchnorm=true", Effort(solves=2, is_beside=True, checks=4)),
        ("refit=0", Effort()),
        ("match=pruned,batchnorm=false", Effort()),
    ],
)
def test_held_out_samples_are_asked_about_convolutions_and_their_batch_normalization(options, effort):
    graph = graph_of(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval(), normal(2, 4, 5, 5))
    assert parse_pass(f"sparsify{{pattern=2:4,{options}}}").effort(graph) == effort


def test_batch_normalizations_that_are_not_there_cost_nothing():
    graph = graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), normal(2, 3, 8, 8))
    assert parse_pass("sparsify{pattern=2:4,match=pruned,batchnorm=true}").effort(graph) == Effort()


def test_the_dense_model_the_checks_and_the_steps_are_forward_passes_that_are_counted():
    def forwards(**options: Any) -> float:
        return estimate._forwards(Effort(**options), n_segments=4, times=10.0, n=80)

    assert forwards() == 0
    assert forwards(is_beside=True) == 10
    assert forwards(steps=64) == 3 * 64
    assert forwards(checks=2) == 2 * 4 * (2 + 1) / 2  # a fifth of ten batches; half of the model, and half a block
    assert forwards(observed=32) == 4


def test_a_step_of_distilling_takes_as_many_samples_as_make_its_predictions_and_a_check_eight_times_as_many():
    effort = Effort(distilled=10, rows=1024)
    assert estimate._distilled(effort, rows=256, n=128) == 10 * 4 * 4 + 18 * 16
    assert estimate._distilled(effort, rows=1, n=128) == 10 * 16 * 4 + 18 * 16
    assert estimate._distilled(effort, rows=4096, n=128) == 10 * 4 + 18 * 2
    assert estimate._distilled(Effort(), rows=256, n=128) == 0


def test_distilling_takes_time_and_memory(monkeypatch):
    monkeypatch.setattr(estimate, "_rate", lambda: 1e12)
    plain, more = (
        plan("tiny-resnet", f"export | {UNASKED},samples=50,through=model,reconstruct={n}}}").cost for n in (0, 100)
    )
    assert more.seconds > 3 * plain.seconds
    assert more.memory > plain.memory


def test_a_block_is_reconstructed_on_whole_batches_and_that_takes_time_and_memory(monkeypatch):
    monkeypatch.setattr(estimate, "_rate", lambda: 1e12)
    plain, more = (plan("tiny-resnet", f"export | {UNASKED},samples=50,reconstruct={n}}}").cost for n in (0, 200))
    assert more.seconds > 10 * plain.seconds
    assert more.memory > plain.memory


def test_a_plan_says_what_the_runtime_gains_and_what_a_dense_model_does(recurrent):
    assert "no sparse kernels" in plan(recurrent, MAGNITUDE).gain
    dense = plan(recurrent, "export")
    assert dense.gain == "a dense model: nothing to gain but the runtime itself"
    assert dense.n_changed == 0


def test_a_plan_raises_what_export_would_raise(recurrent):
    with pytest.raises(RecipeError, match="no site can take 3:7"):
        plan(recurrent, "export | sparsify{pattern=3:7}")
    with pytest.raises(RecipeError, match="no model was named"):
        plan(None)


def test_a_plan_is_json(recurrent):
    loaded = json.loads(plan(recurrent, MAGNITUDE).to_json())
    assert list(loaded) == [
        "schema", "model", "origin", "recipe", "backend", "sites", "cost", "calibration", "evaluation", "gain",
        "training",
    ]  # fmt: skip
    assert loaded["sites"][0]["asked"] == "2:4"
    assert loaded["sites"][0]["holds"] is None


def test_codes_are_foretold_with_their_type_and_what_they_gain():
    torch.manual_seed(0)
    found = plan((nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)),
                 "export | quantize{kind=int8-dynamic,sweeps=0}")  # fmt: skip
    assert [(site.dtype, site.asked) for site in found.sites] == [("int8", ""), ("int8", "")]
    assert found.gain == "weights in int8 are fewer bytes, multiplied by kernels for codes."
