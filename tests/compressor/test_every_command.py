"""What holds for every command of the application: the common flags, JSON alone on standard output, errors as JSON."""

import json
import re
from pathlib import Path

import pytest
import typer

from compressor import cache, driver, registry
from compressor.cli import entry
from compressor.commands.benching import memory
from tests.commands import compress
from tests.compressor.test_engines import Anywhere
from tests.models.architectures import CAUSAL, build, words, words_tokenizer
from tests.timing import hurried

NET = """
import torch
from torch import nn

import compressor


def make():
    torch.manual_seed(0)
    like = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    module = nn.Sequential(like, nn.Linear(32, 8))
    return compressor.Model(module, torch.randn(3, 32), calibration=[torch.randn(16, 32) for _ in range(4)])
"""
PRUNE = ("--sparsity", "2:4", "--method", "magnitude", "--refit", "0")
COMMANDS = {
    "export": ("net.py:make", *PRUNE, "--output", "new", "--overwrite"),
    "plan": ("net.py:make", *PRUNE),
    "sensitivity": ("net.py:make", "--sparsity", "2:4"),
    "inspect": ("artifact",),
    "check": ("engine", "--backend", "tensorrt"),
    "build": ("engine",),
    "bench": ("artifact", "--seconds", "0.05"),
    "diff": ("artifact", "engine"),
    "generate": ("talker", "w3 w1", "--max-new", "3", "--no-dense"),
    "report": ("artifact",),
    "sweep": ("net.py:make", "--sparsity", "0.5", *PRUNE[2:], "--output", "swept"),
    "cache": (),
    "list": (),
}
CODES = {"diff": entry.NOT_MET}  # what is compared is not the same
MORE = {
    "export": r"took +\d+ s: capture the graph \d\.\d s; .*versions +compressor \d",
    "plan": r"\d\.\d s  capture the graph",
    "sensitivity": r"0\.0\.weight: 1,024 weights, given 2:4, which costs \d.*gradients: \d steps? in",
    "inspect": r"0\.0\.weight .*0\.2\.weight ",
    "check": r"0\.0\.weight .*0\.2\.weight ",
    "build": r"sparsity +Anywhere 1\.0: eligible 2, chosen 1;.* sparse sm80_sparse_gemm.*compare with torch's outputs",
    "bench": r"timed +about 0\.05 s each, in turn, on 1 thread.*inputs .*versions .*time them in turn",
    "diff": r"0\.0\.weight .*0\.2\.weight ",
    "generate": r"drawn +never +prompt +2 tokens: \d+ \d+ +artifact's.*open talker in ONNX Runtime",
    "report": r"made from +artifact/report\.json, of 3 weights.*plots ",
    "sweep": r"recipe +export\{model=net\.py:make,.*made in .*hash the model",
    "cache": r"what +kind +size +last used +export\{model=net\.py:make,",
    "list": r"options of quantize .*--quantize-damping ",
}
SCORED = {
    "backend", "calibration", "costs", "dtype", "engine", "environment", "exhibits", "gain", "latency", "model",
    "notes", "origin", "output", "parity", "passed", "pipeline", "promises", "ran_in", "recipe", "scores", "seconds",
    "sites", "sizes", "task", "timed_on", "unquantized", "unscored",
}  # fmt: skip
KEYS = {
    "export": SCORED,
    "plan": {"backend", "calibration", "cost", "evaluation", "gain", "model", "origin", "recipe", "sites", "training"},
    "sensitivity": {"calibration", "model", "origin", "recipe", "sites", "unit"},
    "inspect": {"blocks", "channels", "costs", "name", "origin", "parameters", "sites", "zeros"},
    "check": {"backend", "name", "passed", "verdicts"},
    "build": {"engine", "latency", "name", "passed", "promises"},
    "bench": {"entries", "environment", "latency", "missing", "settings"},
    "diff": {"after", "before", "lines", "operators", "same", "unlike", "weights"},
    "generate": {"name", "prompt", "prompt_tokens", "said", "same", "seed", "temperature"},
    "report": {"bytes", "is_met", "model", "path", "plots", "promises", "samples", "source", "weights"},
    "sweep": {"cached", "dense", "environment", "model", "output", "passed", "points", "seconds"},
    "cache": {"bytes", "entries", "folder", "kinds", "limit", "removed"},
    "list": {"backends", "models", "options", "passes"},
}
WRONG = {
    "export": ("net.py:none", *PRUNE),
    "plan": ("net.py:make", "--sparsity", "3:2"),
    "sensitivity": ("net.py:none",),
    "inspect": ("nothing.onnx",),
    "check": ("nothing.onnx",),
    "build": ("artifact",),
    "bench": ("nothing.onnx",),
    "diff": ("nothing.onnx", "artifact"),
    "generate": ("artifact", "w3"),
    "report": ("nowhere",),
    "sweep": ("net.py:none", "--sparsity", "0.5"),
    "cache": ("list", "--limit", "5MB"),
    "list": ("--no-such-flag",),
}
COMMON = ("--json", "--quiet", "--verbose", "--help")
EXCEPTIONS = {("list", "--quiet"): "what it lists is all that it does"}
every = pytest.mark.parametrize("name", COMMANDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a model's file and three artifacts: of that model, with an engine, and of a language model."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "net.py").write_text(NET)
    (folder / "text.txt").write_text(words(2000))
    build(*CAUSAL["llama"]).save_pretrained(folder / "llama")
    words_tokenizer().save_pretrained(folder / "llama")
    pruned = "sparsify{pattern=2:4,method=magnitude,refit=0}"
    with pytest.MonkeyPatch.context() as patch, hurried():
        patch.chdir(folder)
        with_engine(patch)
        driver.export("net.py:make", f"export | {pruned}", output="artifact")
        driver.export("net.py:make", f"export{{backend=anywhere}} | {pruned}", output="engine")
        driver.export("./llama", "export{data=text.txt,window=32,samples=4}", output="talker")
    registry.names.cache_clear()
    return folder


def with_engine(patch: pytest.MonkeyPatch) -> None:
    """A runtime whose engine runs on any machine."""
    patch.setitem(registry._BUILT_IN["backends"], "anywhere", f"{Anywhere.__module__}:Anywhere")
    registry.names.cache_clear()


@pytest.fixture
def here(made, monkeypatch, quick):
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(memory, "peak", lambda *_: 1)
    with_engine(monkeypatch)
    cache.open_cache().put("points", "a", {"recipe": "export{model=net.py:make,dtype=float32}"})
    yield made
    registry.names.cache_clear()


def known() -> dict[str, set[str]]:
    """The options of every command."""
    commands = typer.main.get_command(entry.app).commands  # type: ignore[attr-defined]
    context = typer.Context(typer.main.get_command(entry.app))
    return {
        name: {spelled for one in command.get_params(context) for spelled in one.opts}
        for name, command in commands.items()
    }


def test_every_command_is_tried_here():
    for table in (COMMANDS, MORE, KEYS, WRONG):
        assert set(table) == set(known())


@every
def test_a_command_has_the_flags_that_all_have(name):
    missing = [flag for flag in COMMON if flag not in known()[name] and (name, flag) not in EXCEPTIONS]
    assert not missing


@every
def test_verbose_tells_more(here, name):
    usual, more = compress(name, *COMMANDS[name]), compress(name, *COMMANDS[name], "--verbose")
    assert more.code == usual.code == CODES.get(name, 0), (usual, more)
    assert max(map(len, more.out.splitlines())) <= 80
    assert usual.err == ""
    for text, is_there in ((usual.out, False), (more.out + more.err, True)):
        found = re.search(MORE[name], " ".join(text.split("\n")), re.DOTALL)
        assert bool(found) == is_there, text


@every
def test_json_is_one_document_of_known_keys_and_all_there_is_on_standard_output(here, name):
    ran = compress(name, *COMMANDS[name], "--json", "--verbose")
    assert ran.code == CODES.get(name, 0), ran
    read = json.loads(ran.out)
    assert set(read) == {"schema", *KEYS[name]}
    assert all(re.match(r" +\d+\.\d s  ", line) for line in ran.err.splitlines()), "steps go to standard error"


@every
def test_quiet_says_nothing_but_what_was_asked_for(here, name):
    if (name, "--quiet") in EXCEPTIONS:
        pytest.skip(EXCEPTIONS[name, "--quiet"])
    ran = compress(name, *COMMANDS[name], "--quiet", "--verbose")
    assert (ran.code, ran.err) == (CODES.get(name, 0), "")
    assert "\n" not in ran.out.strip()
    assert bool(ran.out) == (name == "generate")


@every
def test_an_error_is_json_too_for_those_who_asked_for_json(here, name):
    plain, asked = compress(name, *WRONG[name]), compress(name, *WRONG[name], "--json")
    assert (plain.code, plain.out) == (entry.USER, "")
    assert (asked.code, asked.err) == (entry.USER, plain.err)
    read = json.loads(asked.out)
    assert set(read) == {"schema", "error"}
    assert set(read["error"]) == {"code", "what", "found", "hint"}
    assert read["error"]["code"] == entry.USER
    assert read["error"]["what"].splitlines()[0] in plain.err


@pytest.mark.parametrize(
    ("raised", "code", "what"),
    [(KeyboardInterrupt(), entry.INTERRUPTED, "interrupted"), (ZeroDivisionError("by 0"), entry.BUG, "ZeroDivisionE")],
)
def test_a_run_that_was_stopped_and_a_bug_of_ours_are_json_too(here, monkeypatch, raised, code, what):
    def fail(*arguments: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(driver, "export", fail)
    ran = compress("export", "net.py:make", "--json")
    assert ran.code == code
    assert json.loads(ran.out)["error"]["what"].startswith(what)
    assert json.loads(ran.out)["error"]["code"] == code
