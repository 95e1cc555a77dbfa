"""What is calibrated on, what is scored, and that the score is what it says."""

import base64
import dataclasses
import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from compressor.errors import DataError, SourceError
from compressor.models.hub import HubSource
from compressor.models.records import Records
from compressor.models.task import choose, label_ids, perplexity, top1
from compressor.models.tokens import context_length, windows
from compressor.source import Options
from tests.models.architectures import MASKED, SPECIAL, VOCABULARY, WORDS, build, words, words_tokenizer
from tests.models.test_data import pictures, table, text

WINDOW = 16


def opened(checkpoint: Path, data: Path | None = None, seed: int = 0, window: int = WINDOW) -> Any:
    return HubSource.open(str(checkpoint), Options(str(data) if data else None, window, seed))


def eager(model: Any) -> Any:
    """A run of the model itself, to score without capturing a graph."""

    def run(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"logits": model(**{k: x for k, x in feeds.items() if not k.startswith("past")}).logits}

    return run


def records(content: str) -> Records:
    return Records([{"text": content}], "the text")


def seen(batches: Any, name: str) -> set[tuple]:
    return {tuple(row.flatten().tolist()) for batch in batches for row in batch[name]}


# *** choosing ***


@pytest.mark.parametrize(("available", "n"), [(10, 3), (10, 10), (3, 10), (1000, 7), (1, 1), (5, 0)])
def test_chosen_samples_are_distinct_in_order_and_as_many_as_there_are(available, n):
    chosen = choose(available, n, seed=0)
    assert len(chosen) == min(available, n)
    assert chosen == sorted(set(chosen))
    assert all(0 <= i < available for i in chosen)


def test_the_seed_chooses_the_samples():
    assert choose(1000, 10, seed=1) == choose(1000, 10, seed=1)
    assert choose(1000, 10, seed=1) != choose(1000, 10, seed=2)


def test_samples_of_data_that_repeats_are_not_all_alike():
    assert len({i % 10 for i in choose(1000, 100, seed=0)}) == 10


# *** windows ***


def test_windows_are_consecutive_tokens_and_none_overlap():
    content = words(1000)
    tokenizer = words_tokenizer()
    ids = tokenizer(content)["input_ids"]
    rows = windows(records(content), tokenizer, 16, 1000, seed=0)
    assert rows.flatten().tolist() == ids[: 62 * 16]
    assert windows(records(content), tokenizer, 16, 5, seed=0).shape == (5, 16)


def test_windows_stand_between_the_special_tokens_that_the_tokenizer_puts_around_a_text():
    tokenizer = words_tokenizer("[CLS] $A [SEP]")
    rows = windows(records(words(100)), tokenizer, 16, 100, seed=0)
    assert rows.shape == (7, 16)  # 14 words each
    assert rows[:, 0].tolist() == [2] * 7
    assert rows[:, -1].tolist() == [3] * 7
    assert rows[:, 1:-1].flatten().tolist() == tokenizer(words(100), add_special_tokens=False)["input_ids"][:98]


def test_of_a_long_text_only_a_part_is_tokenized():
    read = []
    tokenizer = words_tokenizer()

    def counting(content: str, **options: Any) -> Any:
        read.append(len(content))
        return tokenizer(content, **options)

    rows = windows(records(words(200_000)), counting, 8, 4, seed=0)
    assert rows.shape == (4, 8)
    assert max(read) < 3000


def test_a_text_shorter_than_a_window_is_refused_with_its_length():
    with pytest.raises(DataError) as caught:
        windows(records(words(9)), words_tokenizer(), 16, 1, seed=0)
    assert caught.value.what == "the text is shorter than one window of 16 tokens"
    assert caught.value.found == "9 tokens in the text"
    assert "--window" in caught.value.hint


def test_positions_that_begin_after_the_padding_index_shorten_the_context():
    assert context_length(build(*MASKED["roberta"])) == 64 - 2
    assert context_length(build(*MASKED["bert"])) == 64


# *** perplexity ***


def test_perplexity_is_the_exponent_of_the_mean_and_its_error_by_the_delta_method():
    score = perplexity([1.0, 2.0, 3.0], "windows")
    assert score.value == pytest.approx(math.exp(2))
    assert score.stderr == pytest.approx(math.exp(2) / math.sqrt(3))
    assert score.per_sample == (1.0, 2.0, 3.0)
    assert not score.higher_is_better
    assert math.isnan(perplexity([1.0], "windows").stderr)
    assert math.isfinite(perplexity([5000.0], "windows").value)


def test_perplexity_of_a_causal_model_is_that_of_each_window(checkpoints, tmp_path):
    source = opened(checkpoints["causal"], text(tmp_path / "a.txt", words(2000)))
    evaluation = source.evaluation(6)
    score = evaluation.score(eager(source.model))
    ids = windows(source.splits.evaluation, source.tokenizer, WINDOW, 6, seed=0)
    with torch.no_grad():
        losses = [source.model(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    assert score.per_sample == pytest.approx(losses, rel=1e-5)
    assert (score.n, score.unit, score.metric) == (6, "windows of 16 tokens", "perplexity")
    assert evaluation.description.startswith("6 windows of 16 tokens from the last 20 % of a.txt")


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(checkpoints, tmp_path):
    source = opened(checkpoints["causal"], text(tmp_path / "a.txt", words(2000)))
    blank = lambda feeds: {"logits": torch.zeros(*feeds["input_ids"].shape, VOCABULARY)}  # noqa: E731
    score = source.evaluation(4).score(blank)
    assert score.value == pytest.approx(VOCABULARY, rel=1e-5)
    assert score.stderr == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("task", ["causal", "masked"])
def test_calibration_and_scoring_share_no_window(checkpoints, tmp_path, task):
    source = opened(checkpoints[task], text(tmp_path / "a.txt", words(4000)))
    scored: list[Any] = []

    def run(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scored.append(feeds)
        return eager(source.model)(feeds)

    source.evaluation(1000).score(run)
    calibrated = source.calibration(1000)
    assert len(seen(calibrated, "input_ids")) > 100
    assert not seen(calibrated, "input_ids") & seen(scored, "input_ids")
    assert sum(len(batch["input_ids"]) for batch in source.calibration(11)) == 11


def test_the_seed_chooses_windows_and_masked_tokens(checkpoints, tmp_path):
    file = text(tmp_path / "a.txt", words(4000))

    @cache
    def made(seed: int) -> tuple:
        source = opened(checkpoints["masked"], file, seed)
        return source.evaluation(5).score(eager(source.model)).per_sample, seen(source.calibration(5), "input_ids")

    again = opened(checkpoints["masked"], file, 1)
    assert made(1) == (
        again.evaluation(5).score(eager(again.model)).per_sample,
        seen(again.calibration(5), "input_ids"),
    )
    assert made(1)[0] != made(2)[0]
    assert made(1)[1] != made(2)[1]


def test_without_data_a_language_model_takes_the_sample_text_and_says_so(checkpoints):
    source = opened(checkpoints["causal"])
    assert source.calibration_description.startswith("the sample text that ships with Compressor: data/train.txt (")
    assert "the sample text that ships with Compressor: data/test.txt (" in source.evaluation(2).description


def test_a_window_is_never_longer_than_the_context(checkpoints, tmp_path):
    source = opened(checkpoints["causal"], text(tmp_path / "a.txt", words(2000)), window=256)
    assert source.calibration(1)[0]["input_ids"].shape == (1, 64)


def test_masked_perplexity_is_of_the_masked_tokens_alone_and_never_of_special_ones(checkpoints, tmp_path):
    source = opened(checkpoints["masked"], text(tmp_path / "a.txt", words(4000)))
    mask_id, feeds = SPECIAL.index("[MASK]"), []

    def run(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        feeds.append(given)
        return eager(source.model)(given)

    score = source.evaluation(20).score(run)
    shown = torch.cat([one["input_ids"] for one in feeds])
    ids = windows(source.splits.evaluation, source.tokenizer, WINDOW, 20, seed=0)
    hidden = shown == mask_id
    assert torch.equal(shown[~hidden], ids[~hidden])
    assert hidden.any(dim=1).all()
    assert not hidden[:, [0, -1]].any()
    assert 0.05 < hidden.float().mean() < 0.25
    with torch.no_grad():
        logits = source.model(input_ids=shown[:1]).logits[0]
    assert score.per_sample[0] == pytest.approx(F.cross_entropy(logits[hidden[0]], ids[0][hidden[0]]).item(), rel=1e-4)


def test_a_tokenizer_without_a_mask_token_is_refused(checkpoints, tmp_path):
    source = opened(checkpoints["masked"], text(tmp_path / "a.txt", words(2000)))
    source.tokenizer.mask_token = None
    with pytest.raises(SourceError, match="has no mask token"):
        source.evaluation(2)


# *** generation ***


def test_generation_continues_held_out_prompts_of_three_lengths(checkpoints, tmp_path):
    source = opened(checkpoints["causal"], text(tmp_path / "a.txt", words(4000)))
    calls: list[Any] = []

    def run(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(feeds)
        return {"logits": torch.eye(VOCABULARY)[feeds["input_ids"]].roll(1, -1)}  # the next id, and 0 after the last

    made = source.generate(run, 3)
    last = calls[0]["input_ids"][:, -1:]
    assert torch.equal(made, (last + torch.arange(1, 4)) % VOCABULARY)
    assert calls[0]["attention_mask"].sum(1).tolist() == [16, 12, 8]
    assert calls[0]["position_ids"][1, :6].tolist() == [0, 0, 0, 0, 0, 1]
    assert calls[2]["attention_mask"].shape == (3, 18)
    assert source.generate(run, 1000).shape == (3, 64 - 16), "no further than the context"


def test_workloads_are_a_prompt_and_a_step_after_it(checkpoints, tmp_path):
    source = opened(checkpoints["causal"], text(tmp_path / "a.txt", words(2000)))
    prefill, decode = source.workloads().values()
    assert list(source.workloads()) == ["prefill 8", "decode at 8"]
    assert prefill["input_ids"].shape == (1, 8)
    assert (decode["input_ids"].shape, decode["attention_mask"].shape) == ((1, 1), (1, 9))
    assert decode["past_key_values.1.value"].shape == (1, 4, 8, 4)


def test_the_showcase_is_text_that_goes_on_and_what_a_run_makes_of_it(checkpoints, tmp_path):
    source = opened(checkpoints["causal"], text(tmp_path / "a.txt", words(2000)))
    shown = source.showcase()
    assert (shown.kind, len(shown.questions)) == ("text", 3)
    held_out = source.splits.evaluation.items[0]["text"].split()
    for question, wanted in zip(shown.questions, shown.wanted, strict=True):
        both = question.split() + wanted.split()
        assert (len(question.split()), len(both)) == (5, WINDOW)
        assert any(held_out[i : i + WINDOW] == both for i in range(len(held_out)))

    def run(feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": torch.eye(VOCABULARY)[feeds["input_ids"]].roll(1, -1)}  # the next id

    first = WORDS.index(shown.questions[0].split()[-1])
    answered = shown.answers(run)[0]
    assert answered.text.split()[:2] == WORDS[first + 1 : first + 3]
    assert (len(answered.text.split()), answered.share) == (11, None)


# *** labelled text ***


def labelled(folder: Path, n: int = 60) -> Path:
    texts = [" ".join(WORDS[i % 80 : i % 80 + 3 + i % 5]) for i in range(n)]
    return table(folder / "a.parquet", text=texts, label=[i % 3 for i in range(n)])


def test_the_showcase_of_a_sequence_classifier_is_labelled_text(checkpoints, tmp_path):
    source = opened(checkpoints["sequence"], labelled(tmp_path))
    shown = source.showcase()
    assert (shown.kind, len(shown.questions)) == ("text", 4)
    evaluated = {record["text"]: f"LABEL_{record['label']}" for record in source.splits.evaluation.items}
    assert shown.wanted == tuple(evaluated[question] for question in shown.questions)
    sure = shown.answers(lambda feeds: {"logits": torch.tensor([[0.0, 30.0, 0.0]]).repeat(4, 1)})
    assert [(one.text, one.share) for one in sure] == [("LABEL_1", 1.0)] * 4


def test_top_1_of_a_sequence_classifier_is_the_share_it_gets_right(checkpoints, tmp_path):
    source = opened(checkpoints["sequence"], labelled(tmp_path))
    evaluation = source.evaluation(10)
    with torch.no_grad():
        score = evaluation.score(eager(source.model))
        chosen = [source.splits.evaluation.items[i] for i in choose(12, 10, seed=0)]
        encoded = [source.tokenizer(record["text"], return_tensors="pt") for record in chosen]
        guesses = [source.model(input_ids=one["input_ids"]).logits.argmax().item() for one in encoded]
    right = [guess == record["label"] for guess, record in zip(guesses, chosen, strict=True)]
    assert score.per_sample == tuple(map(float, right))
    assert score.value == pytest.approx(100 * sum(right) / 10)
    assert evaluation.description.startswith("10 texts from the last 20 % of each class of a.parquet")


def test_long_texts_are_cut_and_short_ones_padded_with_a_mask(checkpoints, tmp_path):
    file = table(tmp_path / "a.parquet", text=["w1 w2", words(100)] * 5, label=[0, 1] * 5)
    source = opened(checkpoints["sequence"], file)
    [batch] = source.calibration(8)
    assert batch["attention_mask"].sum(1).tolist() == [4] * 4 + [WINDOW] * 4
    short = table(tmp_path / "b.parquet", text=["w1 w2", "w3"] * 5, label=[0, 1] * 5)
    assert opened(checkpoints["sequence"], short).calibration(8)[0]["input_ids"].shape == (8, 4)


def test_without_data_a_sequence_classifier_calibrates_on_prose_and_is_not_scored(checkpoints):
    source = opened(checkpoints["sequence"])
    assert source.evaluation(5) is None
    assert sum(len(batch["input_ids"]) for batch in source.calibration(11)) == 11


def test_a_tokenizer_without_padding_is_refused(checkpoints, tmp_path):
    source = opened(checkpoints["sequence"], labelled(tmp_path))
    source.tokenizer.pad_token = None
    with pytest.raises(SourceError, match="has no padding token"):
        source.calibration(2)


@pytest.mark.parametrize(
    ("labels", "ids"), [([0, 2, 1], [0, 2, 1]), (["cat", "dog"], [0, 1]), (["1", "0"], [1, 0]), ([True], [1])]
)
def test_labels_are_numbers_or_the_models_own_names(labels, ids):
    assert label_ids(labels, {"cat": 0, "dog": 1}, 3).tolist() == ids


@pytest.mark.parametrize("label", [3, -1, "bird", "7"])
def test_a_label_that_the_model_does_not_know_is_refused(label):
    with pytest.raises(DataError) as caught:
        label_ids([0, label], {"cat": 0, "dog": 1}, 3)
    assert caught.value.what == f"the label {label!r} is not a class of the model"
    assert caught.value.found == "3 classes: cat, dog"


# *** images ***


def test_top_1_of_an_image_classifier_is_the_share_it_gets_right(checkpoints, tmp_path):
    for name in ("0", "1", "2"):
        pictures(tmp_path / "d" / name, 10)
    source = opened(checkpoints["image"], tmp_path / "d")
    score = source.evaluation(100).score(eager(source.model))
    right = []
    for record in source.splits.evaluation.items:
        pixels = source.processor()([record["image"].open()], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            right.append(float(source.model(pixel_values=pixels).logits.argmax() == int(record["label"])))
    assert score.per_sample == tuple(right)
    assert (score.n, score.unit) == (6, "images")
    assert [x.shape for x in source.calibration(70)[0].values()] == [(24, 3, 32, 32)]


def test_the_showcase_of_an_image_classifier_is_small_pictures_that_a_page_can_hold(checkpoints, tmp_path):
    for name, size in (("LABEL_0", 20), ("LABEL_1", 500)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (size, size), (0, 50 * i, 0)).save(tmp_path / "d" / name / f"{i}.png")
    shown = opened(checkpoints["image"], tmp_path / "d").showcase()
    assert (shown.kind, shown.wanted) == ("picture", ("LABEL_0", "LABEL_1"))
    made = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in shown.questions]
    assert [(one.format, one.size) for one in made] == [("PNG", (20, 20)), ("JPEG", (96, 96))]
    assert made[0].getpixel((3, 3)) == (0, 200, 0), "the held-out one, without loss"
    [first, second] = shown.answers(lambda feeds: {"logits": torch.tensor([[0.0, 0, 0, 9], [0, 9.0, 0, 0]])})
    assert (first.text, second.text) == ("LABEL_3", "LABEL_1")
    assert first.share == pytest.approx(1, abs=1e-3)


def test_an_image_classifier_without_data_is_refused_with_the_flag(checkpoints):
    with pytest.raises(DataError) as caught:
        opened(checkpoints["image"]).calibration(1)
    assert "--data" in caught.value.hint


def test_gray_and_transparent_images_are_made_into_what_the_model_takes(checkpoints, tmp_path):
    from PIL import Image

    for mode in ("L", "RGBA", "P", "1", "LA", "CMYK"):
        (tmp_path / mode).mkdir()
        for i in range(2):
            suffix = "jpg" if mode == "CMYK" else "png"
            Image.new(mode, (5, 7)).save(tmp_path / mode / f"{i}.{suffix}")
    batches = opened(checkpoints["image"], tmp_path).calibration(6)
    assert batches[0]["pixel_values"].shape == (6, 3, 32, 32)


def test_top_1_counts_in_percent():
    score = top1([True, False, True, True], "images")
    assert score.value == 75
    assert score.stderr == pytest.approx(25)
    assert dataclasses.replace(score, per_sample=()) == score, "samples are no part of its identity"
