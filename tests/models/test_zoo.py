"""The models that ship with the package: whole, loadable offline, as good as their README says, and honestly split."""

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.errors import SourceError
from compressor.models import zoo
from compressor.models.zoo.corpus import SHARED_WORDS, Document, is_prose, split, unwrapped
from compressor.models.zoo.ngram import KneserNey

LARGEST = {"tiny-gpt2": 4_000_000, "tiny-resnet": 1_500_000}  # bytes of weights
PERPLEXITY_BOUND = 24.0
TOP1_BOUND = 0.98

GPT2, RESNET = zoo.folder("tiny-gpt2"), zoo.folder("tiny-resnet")


# *** the register ***


def test_every_name_has_a_folder_a_description_and_a_readme():
    assert set(zoo.describe()) == set(zoo.NAMES)
    for name in zoo.NAMES:
        assert (zoo.folder(name) / "README.md").is_file()


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(SourceError) as refused:
        zoo.folder("tiny-gpt")
    assert refused.value.hint == "tiny-gpt2"


@pytest.mark.parametrize("name", zoo.NAMES)
def test_weights_stay_under_the_size_cap(name: str):
    assert (zoo.folder(name) / "model.safetensors").stat().st_size <= LARGEST[name]


# *** tiny-gpt2 ***


def test_tiny_gpt2_predicts_held_out_text_better_than_word_frequencies_do():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(GPT2, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(GPT2, local_files_only=True)
    windows = _windows(tokenizer, GPT2 / "data" / "test.txt", n=24)
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    unigram = _unigram_loss(_windows(tokenizer, GPT2 / "data" / "train.txt"), windows[:, 1:], len(tokenizer))
    assert math.exp(loss) < PERPLEXITY_BOUND
    assert loss < 0.7 * unigram


def test_tiny_gpt2_stores_its_tied_embedding_once_and_in_float32():
    from safetensors import safe_open

    with safe_open(GPT2 / "model.safetensors", "pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    assert sum("wte" in name or "lm_head" in name for name in tensors) == 1
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_tiny_gpt2_tokens_turn_back_into_the_same_text():
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(GPT2, local_files_only=True)
    text = "Return the sum, naïvely — 1 + 2.\n\n  Indented\tand 漢字."
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tiny_gpt2_sample_texts_share_no_run_of_words():
    train, test = (_runs((GPT2 / "data" / f"{side}.txt").read_text(encoding="utf-8")) for side in ("train", "test"))
    assert train
    assert test
    assert not train & test


def _windows(tokenizer, path: Path, n: int | None = None, length: int = 256) -> torch.Tensor:
    """The first n windows (n, length) of a text."""
    ids = tokenizer(path.read_text(encoding="utf-8"), verbose=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)[:n]


def _unigram_loss(train: torch.Tensor, test: torch.Tensor, vocabulary: int) -> float:
    """Nats per token of add-one-smoothed token frequencies."""
    counts = torch.bincount(train.flatten(), minlength=vocabulary) + 1.0
    return -(counts / counts.sum()).log()[test].mean().item()


def _runs(text: str) -> set[tuple[str, ...]]:
    runs = set()
    for paragraph in text.split("\n\n"):
        words = "".join(c.lower() if c.isalnum() or c == "_" else " " for c in paragraph).split()
        runs |= {tuple(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1)}
    return runs


# *** tiny-resnet ***


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from datasets import load_dataset

    files = {side: str(RESNET / "data" / f"{side}.parquet") for side in ("train", "test")}
    return load_dataset("parquet", data_files=files, cache_dir=str(tmp_path_factory.mktemp("datasets")))


def test_tiny_resnet_reads_the_held_out_digits(digits):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(RESNET, local_files_only=True).eval()
    processor = AutoImageProcessor.from_pretrained(RESNET, local_files_only=True)
    pixels = processor(list(digits["test"]["image"]), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (500, 3, 32, 32)
    with torch.no_grad():
        right = model(pixels).logits.argmax(-1) == torch.tensor(digits["test"]["label"])
    assert right.float().mean() >= TOP1_BOUND
    assert model.config.id2label[7] == "7"


def test_no_digit_is_on_both_sides(digits):
    pictures = {side: {_png(image) for image in digits[side]["image"]} for side in ("train", "test")}
    assert [digits[side].num_rows for side in ("train", "test")] == [1297, 500]
    assert not pictures["train"] & pictures["test"]


def _png(image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


# *** the corpus ***


def _documents(n: int) -> list[Document]:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(500)]
    return [Document(f"doc/{i}", "\n\n".join(" ".join(rng.choice(words, 30)) for _ in range(3))) for i in range(n)]


def test_a_document_is_on_one_side_only_whatever_else_is_there():
    docs = _documents(400)
    training, held_out = split(docs)
    keys = [{doc.key for doc in side} for side in (training, held_out)]
    assert keys[1]
    assert not keys[0] & keys[1]
    assert {doc.key for doc in split(docs[:200])[1]} <= keys[1]


def test_a_training_paragraph_that_quotes_held_out_text_is_dropped():
    docs = _documents(400)
    _, held_out = split(docs)
    words = held_out[0].text.split("\n\n")[0].split()
    quoting = Document("doc/twelve", f"before {' '.join(words[5 : 5 + SHARED_WORDS])} after\n\nkept as it is")
    resembling = Document("doc/eleven", f"before {' '.join(words[5 : 4 + SHARED_WORDS])} after")
    assert not quoting.is_held_out
    assert not resembling.is_held_out
    training, _ = split([*docs, quoting, resembling])
    texts = {doc.key: doc.text for doc in training}
    assert texts["doc/twelve"] == "kept as it is"
    assert texts["doc/eleven"] == resembling.text


def test_a_paragraph_met_twice_is_kept_once():
    training, _ = split([Document("doc/a", "the same words"), Document("doc/b", "the same words\n\nother words")])
    assert [doc.text for doc in training] == ["the same words", "other words"]


def test_headings_displayed_blocks_and_markup_are_removed():
    text = """Return `x` as :class:`~a.B`.

    Notes
    -----
    First
    second::

        code = 1

    .. math::

        x^2

    .. versionadded:: 1.0
       Last.
    """
    assert unwrapped(text) == ["Return x as a.B.", "First second:", "Last."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sum of the elements is returned as an array of the same shape as this input.", True),
        (">>> the sum of the elements is returned as an array of the same shape as this input.", False),
        ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu", False),
        ("a = [1, 2, 3]; b = {4: 5}; f(a, b) -> c[0:2] is (x + y) * 2 == 7 and so on to the end", False),
    ],
)
def test_prose_is_told_from_code(text: str, expected: bool):
    assert is_prose(text) is expected


# *** the n-gram model ***


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_kneser_ney_probabilities_sum_to_one_after_any_context(order: int):
    ids = np.random.default_rng(0).integers(0, 9, 300) ** 2 % 11
    model = KneserNey(ids, order, vocabulary=11)
    for context in ([], [1], [1, 4], [10, 10, 10], ids[5:9].tolist()):
        p = model.distribution(np.array(context, dtype=np.int64))
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-9)


def test_kneser_ney_counts_how_many_words_a_word_follows_not_how_often():
    francisco, san = 0, 1  # frequent, but only ever after one word
    ids = np.array([san, francisco] * 20 + [2, 5, 3, 5, 4, 5, 6, 5])
    unseen = KneserNey(ids, 2, vocabulary=8).distribution(np.array([7]))
    assert Counter(ids.tolist())[francisco] > Counter(ids.tolist())[5]
    assert unseen[5] > unseen[francisco]


def test_kneser_ney_agrees_with_the_formula_worked_by_hand():
    # a b a b c: bigrams ab x2, ba, bc. Continuation counts a 1, b 1, c 1; too few counts of counts, so D = 0.5.
    model = KneserNey(np.array([0, 1, 0, 1, 2]), 2, vocabulary=4)
    unigram = (1 - 0.5) / 3 + (1.5 / 3) * (1 / 4)
    assert model.distribution(np.array([0]))[1] == pytest.approx((2 - 0.5) / 2 + (0.5 / 2) * unigram)
