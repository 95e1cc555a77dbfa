"""What a source brings to learn from: every sample once, none that is scored, and the task's own loss."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import DataError, SourceError
from compressor.models.hub import HubSource
from compressor.models.python import Model, PythonSource
from compressor.source import Options, Training
from tests.models.architectures import SPECIAL, VOCABULARY, words
from tests.models.test_data import pictures, png, table, text


def opened(checkpoint: Path, data: Path | None = None) -> Any:
    return HubSource.open(str(checkpoint), Options(str(data) if data else None, window=16))


def drawn(training: Training, name: str) -> Tensor:
    return training.batch(list(range(training.n)), 0)[0][name]


@pytest.mark.parametrize("task", ["causal", "masked"])
def test_text_is_learned_from_whole_and_what_is_scored_is_not_in_it(checkpoints, tmp_path, task):
    source = opened(checkpoints[task], text(tmp_path / "a.txt", words(4000)))
    training, scored = source.training(), []

    def run(feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        scored.append(feeds)
        return {"logits": torch.zeros(*feeds["input_ids"].shape, VOCABULARY)}

    source.evaluation(1000).score(run)
    assert training.n == sum(len(one["input_ids"]) for one in source.calibration(10**6))
    if task == "causal":
        rows = {tuple(row) for row in drawn(training, "input_ids").tolist()}
        assert len(rows) == training.n
        assert not rows & {tuple(row) for feeds in scored for row in feeds["input_ids"].tolist()}
    assert source.training(7).n == 7
    assert training.description.startswith(f"{training.n} windows of 16 tokens")


def test_the_loss_of_a_causal_model_is_that_of_its_own_library(checkpoints, tmp_path):
    source = opened(checkpoints["causal"], text(tmp_path / "a.txt", words(4000)))
    training = source.training()
    feeds, targets = training.batch([3, 1], 0)
    with torch.no_grad():
        expected = source.model(input_ids=feeds["input_ids"], labels=feeds["input_ids"])
    assert training.loss is not None
    assert training.loss(expected.logits, targets).item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_other_tokens_are_masked_each_time_and_the_loss_is_of_them_alone(checkpoints, tmp_path):
    source = opened(checkpoints["masked"], text(tmp_path / "a.txt", words(4000)))
    training, mask_id = source.training(), SPECIAL.index("[MASK]")
    (feeds, targets), (again, _), (other, _) = (training.batch([0, 1, 2], seed) for seed in (5, 5, 6))
    hidden = feeds["input_ids"] == mask_id
    assert torch.equal(feeds["input_ids"], again["input_ids"])
    assert not torch.equal(feeds["input_ids"], other["input_ids"])
    assert torch.equal(targets != -100, hidden)
    logits = torch.randn(3, 16, VOCABULARY)
    assert training.loss is not None
    expected = F.cross_entropy(logits[hidden], targets[hidden])
    assert training.loss(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], None])
def test_texts_bring_their_labels_where_there_are_any(checkpoints, tmp_path, labels):
    content = [words(3 + i, seed=i) for i in range(6)]
    columns = {"text": content, **({"label": labels} if labels else {})}
    table(tmp_path / "d" / "train.parquet", **columns)
    table(tmp_path / "d" / "test.parquet", text=[words(4, seed=9)], label=[1])
    training = opened(checkpoints["sequence"], tmp_path / "d").training()
    feeds, targets = training.batch([4, 0], 0)
    assert training.n == 6
    assert feeds["input_ids"].shape == (2, 3 + 4 + 2)  # the longest of the two, between [CLS] and [SEP]
    assert (training.loss is None) == (labels is None)
    if labels and training.loss:
        assert targets.tolist() == [1, 0]
        assert training.loss(torch.zeros(2, 3), targets).item() == pytest.approx(math.log(3))


def test_images_bring_their_labels_and_a_label_that_is_no_class_is_refused(checkpoints, tmp_path):
    rows = [{"bytes": png((i, 0, 0))} for i in range(4)]
    good = table(tmp_path / "good" / "train.parquet", image=rows, label=[0, 1, 2, 0]).parent
    table(good / "test.parquet", image=rows[:1], label=[1])
    training = opened(checkpoints["image"], good).training()
    feeds, targets = training.batch([2, 0], 0)
    assert feeds["pixel_values"].shape == (2, 3, 32, 32)
    assert targets.tolist() == [2, 0]
    assert training.loss is not None
    assert training.at_once == (1 << 22) // (3 * 32 * 32)
    bad = table(tmp_path / "bad" / "train.parquet", image=rows, label=[0, 1, 2, 77]).parent
    table(bad / "test.parquet", image=rows[:1], label=[1])
    with pytest.raises(DataError, match="77 is not a class"):
        opened(checkpoints["image"], bad).training()


def test_unlabelled_images_have_no_loss(checkpoints, tmp_path):
    assert opened(checkpoints["image"], pictures(tmp_path / "d")).training().loss is None


def brings(**options: Any) -> Training:
    return PythonSource.open(Model(nn.Linear(3, 2), torch.zeros(1, 3), **options), Options()).training()


def test_samples_that_a_model_brings_are_rows_of_all_its_batches():
    x = torch.arange(15.0).reshape(5, 3)
    training = brings(training=[(x[:2], torch.tensor([0, 1])), (x[2:], torch.tensor([1, 1, 0]))])
    feeds, targets = training.batch([4, 0], 0)
    assert torch.equal(feeds["input"], x[[4, 0]])
    assert targets.tolist() == [0, 0]
    assert training.description == "5 samples that Linear brings"
    assert training.loss is not None
    assert training.loss(torch.zeros(2, 2), targets).item() == pytest.approx(math.log(2))


def test_calibration_inputs_that_a_model_brings_have_no_labels_and_its_loss_may_be_its_own():
    assert brings(calibration=[torch.zeros(4, 3)]).loss is None
    training = brings(training=[(torch.ones(4, 3), torch.ones(4, 2))], loss=F.mse_loss)
    assert training.loss is F.mse_loss


def test_batches_that_do_not_fit_together_are_refused():
    with pytest.raises(SourceError, match="do not fit together"):
        brings(training=[(torch.ones(4, 3), torch.ones(4)), (torch.ones(4, 5), torch.ones(4))])
