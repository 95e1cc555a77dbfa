"""What the written file says is what transformers generates, streamed whole, and repeatable by its seed."""

import json
from pathlib import Path

import pytest
import torch

from compressor import driver
from compressor.commands import generating
from compressor.commands.generating import generate
from compressor.commands.sampling import blank, chooser, tokens
from compressor.errors import OutputError, RecipeError, SourceError
from tests.commands import Ran, compress
from tests.models.architectures import CAUSAL, build, words, words_tokenizer
from tests.timing import hurried

PROMPT = "w3 w1 w4"

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small Llama with grouped heads, and a tokenizer of words."""
    folder = tmp_path_factory.mktemp("checkpoint") / "llama"
    build(*CAUSAL["llama"]).save_pretrained(folder)
    words_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def artifact(checkpoint, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("talks")
    (root / "text.txt").write_text(words(2000))
    recipe = (
        f"export{{data={root / 'text.txt'},window=32,samples=4}} | sparsify{{pattern=2:4,method=magnitude,refit=0}}"
    )
    with hurried():
        driver.export(str(checkpoint), recipe, output=root / "artifact")
    return root / "artifact"


def expected(checkpoint: Path, n: int) -> list[int]:
    """What transformers generates greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(checkpoint)(PROMPT, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    made = model.generate(ids, max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)
    return made[0, ids.shape[1] :].tolist()


# *** what is said ***


def test_both_talk_greedily_and_the_dense_one_says_what_transformers_says(artifact, checkpoint):
    pieces: list[tuple[str, str]] = []
    said = generate(artifact, PROMPT, max_new=12, hear=lambda by, piece: pieces.append((by, piece)))
    dense, own = said.said
    assert list(dense.tokens) == expected(checkpoint, 12)[: len(dense.tokens)]
    assert [(one.by, one.runtime) for one in said.said] == [("dense", "torch"), ("artifact", "onnxruntime")]
    for one in said.said:
        assert "".join(piece for by, piece in pieces if by == one.by) == one.text
        assert one.first_ms > 0
    assert said.same == next((i for i, (a, b) in enumerate(zip(dense.tokens, own.tokens)) if a != b), 12)  # noqa: B905


def test_the_same_seed_draws_the_same_and_another_does_not(artifact):
    def drawn(seed: int) -> tuple[int, ...]:
        said = generate(artifact, PROMPT, max_new=20, temperature=5.0, seed=seed, dense=False)
        assert said.same is None
        return said.said[0].tokens

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_it_stops_where_the_context_does(artifact):
    [one] = generate(artifact, PROMPT, max_new=1000, temperature=5.0, dense=False).said
    assert one.ended or len(one.tokens) == 64 - 3


def test_without_the_dense_model_the_artifact_talks_alone(artifact, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in artifact.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    recipe = (moved / "recipe.yaml").read_text().replace("/llama", "/gone")
    (moved / "recipe.yaml").write_text(recipe)
    with pytest.raises(SourceError, match=r"the dense model of .* cannot be opened") as refused:
        generate(moved, PROMPT, max_new=2)
    assert "--no-dense" in refused.value.hint
    assert len(generate(moved, PROMPT, max_new=2, dense=False).said) == 1


def test_quiet_prints_only_what_the_artifact_adds(artifact):
    [said] = generate(artifact, PROMPT, max_new=3, dense=False).said
    assert compress("generate", artifact, PROMPT, "-n", 3, "--quiet") == Ran(0, said.text + "\n", "")


def test_the_json_holds_every_token(artifact):
    said = generate(artifact, PROMPT, max_new=3, dense=False)
    loaded = json.loads(said.to_json())
    assert loaded["said"][0]["tokens"] == list(said.said[0].tokens)
    assert (loaded["prompt"], loaded["same"]) == (PROMPT, None)


# *** streaming ***


class Letters:
    """Each token a byte of UTF-8; 0 ends a text."""

    ends, longest = frozenset([0]), 100

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def saying(text: bytes):
    """A run that goes on with these bytes, whatever it is asked."""
    coming = iter(text)
    return lambda feeds: {"logits": torch.eye(256)[next(coming)].expand(1, feeds["input_ids"].shape[1], 256)}


def said(text: bytes, most: int = 99) -> tuple[generating.Said, list[str]]:
    speaker, pieces = generating._Speaker("artifact", "a runtime", saying(text), {}), []
    made = generating._say(speaker, Letters(), [65], most, chooser(0, 0), lambda by, piece: pieces.append(piece))
    return made, pieces


def test_half_a_character_waits_for_its_other_half():
    made, pieces = said("né\0".encode())
    assert pieces == ["n", "é", ""]
    assert (made.text, made.tokens, made.ended) == ("né", (110, 195, 169), True)


def test_a_text_ends_at_its_end_or_when_enough_was_said():
    assert said(b"abc\0def")[0].text == "abc"
    cut, _ = said(b"abcdef", most=2)
    assert (cut.text, cut.ended) == ("ab", False)
    assert said(b"a", most=1)[0].per_second is None


# *** the calls ***


def test_each_call_carries_the_cache_and_counts_positions():
    calls = []

    def run(feeds):
        calls.append({name: (x.tolist() if x.ndim == 2 else tuple(x.shape)) for name, x in feeds.items()})
        past = torch.cat([feeds["past_key_values.0.key"], torch.ones(1, 2, feeds["input_ids"].shape[1], 4)], 2)
        return {"logits": torch.eye(9)[feeds["input_ids"] + 1], "present.0.key": past}

    empty = blank({
        "input_ids": (["batch", "sequence"], torch.int64), "position_ids": (["batch", "sequence"], torch.int64),
        "past_key_values.0.key": (["batch", 2, "past_sequence", 4], torch.float32),
    })  # fmt: skip
    made = tokens(run, empty, [1, 2], chooser(0, 0))
    assert [next(made), next(made)] == [3, 4]
    assert calls == [
        {"input_ids": [[1, 2]], "attention_mask": [[1, 1]], "position_ids": [[0, 1]],
         "past_key_values.0.key": (1, 2, 0, 4)},
        {"input_ids": [[3]], "attention_mask": [[1, 1, 1]], "position_ids": [[2]],
         "past_key_values.0.key": (1, 2, 2, 4)},
    ]  # fmt: skip


def test_temperature_draws_in_proportion():
    draw = chooser(1.0, 0)
    logits = torch.tensor([0.0, 0.0, 1.0]).log()
    assert {draw(logits) for _ in range(20)} == {2}
    flat = torch.zeros(3)
    assert {draw(flat) for _ in range(60)} == {0, 1, 2}


# *** refusals ***


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": words(70)}, "the prompt is too long"),
        ({"max_new": 0}, "there is nothing to generate"),
        ({"temperature": -1}, "a temperature is not negative"),
    ],
)
def test_what_cannot_be_said_is_refused(artifact, options, what):
    with pytest.raises(RecipeError, match=what) as refused:
        generate(artifact, **{"prompt": PROMPT, **options})
    assert refused.value.hint


def test_what_is_no_language_model_is_refused(resnet, tmp_path):
    with pytest.raises(RecipeError, match="does not generate text") as refused:
        generate(resnet[0], PROMPT)
    assert refused.value.found == "image-classification"
    with pytest.raises(OutputError, match="cannot read"):
        generate(tmp_path, PROMPT)
