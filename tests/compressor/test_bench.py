"""Benchmarks of any ONNX file: inputs made from what the file says, models in turn, memory, tokens per second."""

import dataclasses
import json
import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx import parser
from rich.console import Console

from compressor.commands.benching import memory
from compressor.commands.benching.contestant import find
from compressor.commands.benching.feeds import signature
from compressor.commands.benching.run import Settings, bench, sizes_of
from compressor.commands.benching.table import show_bench
from compressor.errors import BackendError, RecipeError, SourceError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
CLASSIFIER = (
    HEAD
    + """
classifier (float[N, 3, height, 8] image) => (float[N, 3, height, 8] logits) {
    logits = Relu (image)
}
"""
)
SWIMMER = CLASSIFIER.replace("image", "picture").replace("Relu", "Sigmoid")
# Tokens to rows of one table; the cache grows by rows of another: two heads of four values.
TALKER = (
    HEAD
    + """
talker (int64[batch_size, sequence] input_ids, int64[batch_size, total] attention_mask,
        float[batch_size, 2, past, 4] past_key_values_0_key)
    => (float[batch_size, sequence, 8] logits, float[batch_size, 2, total, 4] present_0_key)
    <int64[4] shape = {0, 0, 2, 4}, float[8, 8] table = {VALUES}>
{
    logits = Gather (table, input_ids)
    parts = Reshape (logits, shape)
    rows = Transpose <perm = [0, 2, 1, 3]> (parts)
    present_0_key = Concat <axis = 2> (past_key_values_0_key, rows)
}
""".replace("VALUES", ", ".join(str(float(i % 7)) for i in range(64)))
)
QUICK = Settings(seconds=0.05, batches=(1, 2), prompt=5, new=3, sizes={"height": 6})


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", CLASSIFIER), ("b", SWIMMER), ("talker", TALKER), ("talker-2", TALKER)):
        onnx.save(parser.parse_model(text), tmp_path / f"{name}.onnx")
    return tmp_path


@pytest.fixture
def no_process(monkeypatch) -> None:
    monkeypatch.setattr(memory, "peak", lambda *_: 1000)


def test_inputs_are_made_from_what_the_file_says(files):
    found = signature(Path("a.onnx"))
    feeds = found.sample(2, {"height": 6})
    assert {name: (tuple(x.shape), x.dtype) for name, x in feeds.items()} == {"image": ((2, 3, 6, 8), torch.float32)}
    assert torch.equal(feeds["image"], found.sample(2, {"height": 6})["image"])
    assert not found.is_language_model


def test_an_axis_nobody_can_know_is_asked_for(files):
    with pytest.raises(RecipeError, match="how long is the axis 'height' of image") as caught:
        signature(Path("a.onnx")).sample(1, {})
    assert caught.value.hint == "--shape height=224"


def test_a_language_model_is_known_by_its_cache(files):
    found = signature(Path("talker.onnx"))
    assert found.is_language_model
    assert found.vocabulary == 8
    assert {name: tuple(x.shape) for name, x in found.empty_cache().items()} == {
        "input_ids": (1, 0), "attention_mask": (1, 0), "past_key_values_0_key": (1, 2, 0, 4),
    }  # fmt: skip
    assert max(found.prompt(100)) < 8


@pytest.mark.usefixtures("no_process")
def test_files_run_in_turn_whatever_their_inputs_are_called(files):
    found = bench(["a.onnx", "b.onnx"], QUICK)
    assert [row.workload for row in found.latency] == ["batch of 1", "batch of 2"]
    for row in found.latency:
        assert list(row.latency) == ["a.onnx", "b.onnx"]
        assert row.latency["a.onnx"].n == row.latency["b.onnx"].n >= 10
        assert row.ratio["a.onnx"] == 1.0
    assert [entry.file_bytes for entry in found.entries] == [Path(f"{name}.onnx").stat().st_size for name in "ab"]
    assert (found.missing, found.entries[0].tokens_per_second) == ((), None)


@pytest.mark.usefixtures("no_process")
def test_language_models_say_how_long_the_first_token_takes_and_how_many_follow(files):
    found = bench(["talker.onnx", "talker-2.onnx"], QUICK)
    assert [row.workload for row in found.latency] == ["first token after 5", "a token of 3"]
    for entry in found.entries:
        assert entry.first.n >= 4
        assert entry.tokens_per_second == pytest.approx(1000 / found.latency[1].latency[entry.name].p50)
    assert json.loads(found.to_json())["entries"][0]["memory"] == 1000


def test_a_process_that_fails_has_no_memory_to_tell(files, monkeypatch):
    monkeypatch.setattr(memory.sys, "executable", "false")
    assert memory.peak(Path("a.onnx"), 1, 4, 1, {}) is None


def test_memory_is_that_of_a_process_of_its_own(files):
    big = 16 * 2**20  # bytes of a sample
    text = CLASSIFIER.replace("height, 8", "height, 2048")
    onnx.save(parser.parse_model(text), "big.onnx")
    height = big // (4 * 3 * 2048)
    used = memory.peak(Path("big.onnx"), 1, 4, 1, {"height": height})
    assert used is not None
    assert 2 * big < used < 8 * big  # input and output at least


@pytest.mark.parametrize(
    ("names", "settings", "error", "what"),
    [
        (["a.onnx", "a.onnx"], QUICK, RecipeError, "a model cannot run against itself"),
        (["a.onnx", "talker.onnx"], QUICK, RecipeError, "language models and others cannot be compared"),
        (["no.onnx"], QUICK, SourceError, "cannot find no.onnx"),
        (["a.onnx"], Settings(threads=0), RecipeError, "threads, batches, tokens and seconds are positive"),
        (["talker.onnx"], Settings(new=1), RecipeError, "new tokens at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(files, names, settings, error, what):
    with pytest.raises(error, match=what):
        bench(names, settings)


def test_a_file_that_fails_says_what_to_try(files):
    # Four rows, where logits have eight: some token has none.
    text = re.sub(r"float\[8, 8\] table = \{[^}]*\}", "float[4, 8] table = {" + "1.0, " * 31 + "1.0}", TALKER)
    onnx.save(parser.parse_model(text), "short.onnx")
    with pytest.raises(BackendError, match="cannot run one of them") as caught:
        bench(["short.onnx"], QUICK)
    assert "--prompt-tokens" in caught.value.hint


def test_a_model_takes_part_dense_and_a_folder_by_its_file(files):
    Path("net.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(8, 4), torch.randn(3, 8)\n")
    found = find("net.py:make", False, files / "scratch")
    assert (found.what, found.file) == ("dense model", files / "scratch" / "model.onnx")
    assert signature(found.file).inputs["input"][0] == ["batch", 8]
    folder = find(str(files / "scratch"), False, files / "other")
    assert (folder.what, folder.file) == ("folder", found.file)
    assert folder.bytes == sum(path.stat().st_size for path in found.file.parent.iterdir())


def test_lengths_of_axes_are_typed_as_symbol_and_number():
    assert sizes_of(["height=224", "width=96"]) == {"height": 224, "width": 96}
    with pytest.raises(RecipeError, match="a shape cannot be 'height'"):
        sizes_of(["height"])


@pytest.mark.usefixtures("no_process")
def test_the_tables_fit_in_80_columns(files, capsys):
    found = bench(["talker.onnx", "talker-2.onnx"], QUICK)
    show_bench(dataclasses.replace(found, missing=("the engine of x",)), Console(width=80), verbose=True)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "tokens/s" in out
    assert "not timed: the engine of x" in out
