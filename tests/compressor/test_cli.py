"""The command line: exit codes, what goes to which stream, and every mistake a user makes in one clear paragraph."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml

from compressor import driver
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.cli import entry
from compressor.errors import InternalError
from compressor.models import zoo
from compressor.recipe import Recipe
from tests import commands
from tests.commands import Ran
from tests.compressor.test_report import report

NET = '''
import sys, time
from pathlib import Path

import torch
from torch import nn


def make(inner=64):
    torch.manual_seed(0)
    layers = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, inner), nn.ReLU(), nn.Linear(inner, 8)
    return nn.Sequential(*layers), torch.randn(3, 32)


def odd():
    """The last of the three reads 6 values, and is refused when it is named."""
    return make(6)


class Slow(nn.Module):
    """Stops while it is captured, in the middle of a run."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls = make()[0], 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            Path("started").touch()
            time.sleep(60)
        return self.inner(x)


def slow():
    return Slow(), torch.randn(3, 32)
'''
PRUNE = ("--sparsity", "2:4", "--method", "magnitude", "--refit", "0")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory of a test, with a file that makes models."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compress(quick):
    """The command, run in this process."""
    return commands.compress


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "compressor.cli", *map(str, arguments)]


def process(*arguments: object, **options: object) -> Ran:
    """The command, run in a process of its own, its output in pipes."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]
    return Ran(done.returncode, done.stdout, done.stderr)


def one_paragraph(ran: Ran) -> str:
    """The message of a mistake of the user's: exit code 2, no traceback, nothing on standard output."""
    assert ran.code == entry.USER, ran
    assert ran.out == ""
    assert ran.err.startswith("compress: "), ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.strip().splitlines()) <= 4, ran.err
    return ran.err


def leftovers(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {"net.py", "__pycache__", "started"})


# *** help ***


@pytest.mark.parametrize("name", ["", *sorted(typer.main.get_command(entry.app).commands)])  # type: ignore[attr-defined]
def test_help_is_there_and_fits_in_80_columns(compress, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = compress(*filter(None, [name]), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Usage: compress")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "..." not in ran.out.partition("Commands:")[2]


def test_without_arguments_it_helps(compress):
    ran = compress()
    assert "Commands:" in ran.out + ran.err


def test_the_version(compress):
    assert re.fullmatch(r"compress \d+\.\d+\.\d+\n", compress("--version").out)


# *** a run that ends well ***


def test_a_run_in_a_pipe_writes_a_plain_table_and_nothing_else(folder):
    ran = process("export", "net.py:make", *PRUNE, "--output", "out")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("PASSED  net.py:make -> out/  onnxruntime")
    assert "\x1b" not in ran.out
    assert "\r" not in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert leftovers(folder) == ["out"]


def test_json_is_all_there_is_on_standard_output(compress):
    ran = compress("export", "net.py:make", *PRUNE, "-o", "out", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == Path("out/report.json").read_text()
    assert json.loads(ran.out)["passed"] is True


@pytest.mark.parametrize(
    "arguments", [("plan", "net.py:make", *PRUNE), ("inspect", "net.py:make"), ("list",), ("cache",)]
)
def test_every_table_fits_in_80_columns(compress, arguments):
    ran = compress(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_quiet_says_nothing_when_all_is_well(compress):
    ran = compress("export", "net.py:make", *PRUNE, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert Path("make-onnxruntime/report.json").exists()


def test_quiet_of_an_inspection_is_its_exit_code(compress):
    assert compress("inspect", "net.py:make", "--quiet") == Ran(0, "", "")
    assert compress("inspect", "net.py:none", "--quiet").code == entry.USER


def test_colour_is_left_out_when_asked(compress, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = compress("inspect", "net.py:make", "--verbose").out
    assert "\x1b[" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3\dm", compress("inspect", "net.py:make", "--verbose").out)


def test_a_reader_that_leaves_changes_no_exit_code():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command("list"), stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sweep_is_a_table_a_page_and_json(compress, folder):
    arguments = ("sweep", "net.py:make", "--sparsity", "0.5,3:7", *PRUNE[2:], "-o", "out")
    ran = compress(*arguments)
    assert (ran.code, ran.err) == (entry.NOT_MET, "")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "3:7: no site can take 3:7" in ran.out
    assert Path("out/sweep.html").exists()
    again = compress(*arguments, "--json")
    assert again.out == Path("out/sweep.json").read_text()
    assert json.loads(again.out)["cached"] == 2
    assert again.err == "compress: not met: a point failed or broke a promise; sweep.json says which\n"


def completed(*words: str) -> list[str]:
    """What bash would offer after these words."""
    environment = {
        "_COMPRESS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "import sys; sys.argv = ['compress']; from compressor.cli.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    return done.stdout.split()


def test_a_shell_completes_commands_and_flags():
    assert completed("compress", "ex") == ["export"]
    assert completed("compress", "export", "--spars") == ["--sparsity"]
    assert {"--sparsity", "--methods", "--no-cache"} <= set(completed("compress", "sweep", "--"))


# *** a promise that is not met ***


def test_a_promise_that_is_not_met_ends_with_1(folder):
    ran = process("export", "net.py:odd", *PRUNE, "--targets", "*.weight", "-o", "out")
    assert (ran.code, ran.err) == (entry.NOT_MET, "")
    assert ran.out.startswith("NOT MET  net.py:odd -> out/")
    assert leftovers(folder) == ["out"]


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_without_a_table_it_is_said_on_standard_error(compress, flag):
    ran = compress("export", "net.py:odd", *PRUNE, "--targets", "*.weight", flag)
    assert ran.code == entry.NOT_MET
    assert ran.err.startswith("compress: not met: every named site is changed: 2 sites changed, 1 refused (4.weight")


def test_a_refused_site_may_be_accepted(compress):
    assert compress("export", "net.py:odd", *PRUNE, "--targets", "*.weight", "--allow-partial").code == 0


@pytest.mark.slow
def test_a_drop_beyond_the_budget_ends_with_1(compress):
    ran = compress(
        "export", "tiny-resnet", "-s", "0.95", "--method", "magnitude", "--refit", "0", "--samples", "32",
        "--max-drop", "1%", "-q",
    )  # fmt: skip
    assert ran.code == entry.NOT_MET
    assert re.search(r"not met: the score stays within the budget: top-1 \(%\) [\d.]+ points worse than dense", ran.err)


# *** mistakes of the user's ***


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        ((), "no model was named", "compress export tiny-gpt2 --sparsity 2:4"),
        (("tiny-gpt", "-s", "2:4"), "tiny-gpt", "tiny-gpt2"),
        (("net.py:made",), "net.py has no function 'made'", "make"),
        (("nets.py:make",), "nets.py", "FILE.py:FUNCTION"),
        (("no.such.module:make",), "no.such.module", "FILE.py:FUNCTION"),
        (("net.py:make", "-s", "2:4:8"), "2:4:8", "2:4"),
        (("net.py:make", "-s", "4:2"), "4:2", ""),
        (("net.py:make", "-s", "1.5"), "1.5", ""),
        (("net.py:make", "-s", "3:7", *PRUNE[2:]), "no site can take 3:7", "compress plan"),
        (("net.py:make", "-s", "2:4", "--method", "wonda"), "unknown method 'wonda'", "wanda"),
        (("net.py:make", "-s", "0.5", "--scope", "globl"), "unknown scope 'globl'", "global"),
        (("net.py:make", "-b", "tensorflow"), "unknown backend 'tensorflow'", "known: onnxruntime"),
        (("net.py:make", "--dtype", "float61"), "unknown dtype 'float61'", "float16"),
        (("net.py:make", "-s", "2:4", "--preset", "bset"), "unknown preset 'bset'", "best"),
        (("net.py:make", "--method", "wanda"), "--method cannot stand without --sparsity", "--sparsity 2:4"),
        (("net.py:make", "--preset", "fast"), "--preset fast chooses how, but nothing says what", "--sparsity 2:4"),
        (("net.py:make", "--max-drop", "little"), "recipe.max_drop cannot be 'little'", "a number"),
        (("net.py:make", "--max-drop=-1"), "max_drop cannot be -1", ""),
        (("net.py:make", "--max-drop", "1%"), "max_drop needs something to score", "--data"),
        (("net.py:make", "--samples", "0"), "samples at least 1", ""),
        (("net.py:make", "-s", "2:4"), "brings no calibration data", ", or --method magnitude --refit 0"),
        (("net.py:make", "--channels", "0.5"), "no calibration data", ", or --channels-importance magnitude --no-chan"),
        (("net.py:make", "--quantize", "int8"), "no calibration data", ", or --quantize int8-dynamic --sweeps 0"),
        (("net.py:make", "--channels", "0.5", "--damping", "1"), "--damping cannot stand", "--channels-damping"),
        (("net.py:make", *PRUNE, "--targets", "inner"), "no weight is named 'inner'", ".weight"),
        (("net.py:make", *PRUNE, "--ignore", "2.wight"), "no weight is named '2.wight'", "2.weight"),
        (("net.py:make", "--recipe", "no.yaml"), "cannot find the recipe no.yaml", "recipe.yaml"),
    ],
)
def test_a_mistake_is_one_paragraph_that_says_what_to_type(compress, folder, arguments, what, hint):
    message = one_paragraph(compress("export", *arguments))
    assert what in message
    assert hint in message
    assert leftovers(folder) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("modle: net.py:make\n", "unknown option of recipe 'modle'"),
        ("passes:\n- pass: sparsfy\n", "unknown pass 'sparsfy'"),
        ("passes:\n- pass: sparsify\n  pattren: '2:4'\n", "unknown option of sparsify 'pattren'"),
        ("[1, 2", "the recipe is not YAML"),
        ("just words", "a recipe is a mapping"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_paragraph(compress, text, what):
    Path("recipe.yaml").write_text(text)
    assert what in one_paragraph(compress("export", "net.py:make", "--recipe", "recipe.yaml"))


@pytest.mark.parametrize("arguments", [("exprt",), ("export", "net.py:make", "--sparsty", "2:4"), ("export", "a", "b")])
def test_a_flag_nobody_knows_is_the_user_s(compress, arguments):
    ran = compress(*arguments)
    assert (ran.code, ran.out) == (entry.USER, "")
    assert "Usage: compress" in ran.err
    assert "Traceback" not in ran.err


def test_a_mistake_in_a_process_of_its_own_ends_with_2_and_debugging_shows_the_traceback():
    arguments = ("export", "net.py:make", "--dtype", "float61")
    assert "unknown dtype" in one_paragraph(process(*arguments))
    ran = process(*arguments, env=os.environ | {"COMPRESS_DEBUG": "1"})
    assert ran.code == entry.USER
    assert ran.err.startswith("Traceback")
    assert "compress: unknown dtype 'float61'" in ran.err


# *** checkpoints that cannot be used ***


@pytest.fixture
def checkpoint(folder) -> Path:
    """A copy of tiny-resnet to break."""
    shutil.copytree(zoo.folder("tiny-resnet"), folder / "checkpoint")
    return folder / "checkpoint"


def with_nan(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights["classifier.1.weight"][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


def pickled(path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def with_code(path: Path) -> None:
    config = json.loads((path.parent / "config.json").read_text())
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig"}}
    (path.parent / "config.json").write_text(json.dumps(config))
    (path.parent / "odd.py").write_text("raise SystemExit('code of the model ran')")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: (path.parent / "config.json").unlink(), "config.json"),
        (lambda path: path.unlink(), "checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "checkpoint"),
        (pickled, "safetensors"),
        (with_nan, "NaN"),
        (with_code, "--trust-remote-code"),
    ],
    ids=["no config", "no weights", "cut short", "pickled", "NaN", "code of its own"],
)
def test_a_checkpoint_that_cannot_be_used_is_one_paragraph(compress, folder, checkpoint, damage, what):
    damage(checkpoint / "model.safetensors")
    assert what in one_paragraph(compress("export", "./checkpoint", "--data", zoo.folder("tiny-resnet") / "data"))
    assert leftovers(folder) == ["checkpoint"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("  \n\n ", "empty"),
        ("A few words.\n\nAnd a few more.", "shorter than one window"),
        (None, "no data at"),
    ],
)
def test_text_that_cannot_be_used_is_one_paragraph(compress, folder, text, what):
    if text is not None:
        Path("text.txt").write_text(text)
    message = one_paragraph(compress("export", "tiny-gpt2", "-s", "2:4", "--data", "text.txt"))
    assert what in message
    assert leftovers(folder) == ([] if text is None else ["text.txt"])


# *** output ***


def test_the_page_is_made_again_from_the_report(compress, folder):
    report().write(folder / "report.json")
    ran = compress("report", ".")
    assert (ran.code, ran.err) == (0, "")
    assert re.fullmatch(r"PASSED  tiny: report\.html  \d+\.\d kB\n", ran.out)
    assert json.loads(compress("report", ".", "--output", "other.html", "--json").out)["path"] == "other.html"
    assert (folder / "other.html").read_bytes() == (folder / "report.html").read_bytes()
    assert "cannot read nowhere/report.json" in one_paragraph(compress("report", "nowhere"))


def test_diff_ends_as_diff_does(compress, folder):
    assert compress("export", "net.py:make", "-q", "-o", "a").code == 0
    same = compress("diff", "a", "a")
    assert (same.code, same.out.split()[:2]) == (0, ["the", "same"])
    found = compress("diff", "net.py:odd", "net.py:make", "--json")
    assert (found.code, json.loads(found.out)["same"]) == (1, False)
    assert compress("diff", "net.py:odd", "net.py:make", "--quiet").out == ""
    assert "cannot find nothing.onnx" in one_paragraph(compress("diff", "nothing.onnx", "a"))


def test_a_folder_that_exists_is_left_as_it_is(compress):
    assert compress("export", "net.py:make", "-q", "-o", "out").code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    message = one_paragraph(compress("export", "net.py:make", *PRUNE, "-o", "out"))
    assert "out already exists" in message
    assert "--overwrite" in message
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    assert compress("export", "net.py:make", *PRUNE, "-o", "out", "--overwrite").code == 0
    assert Path("out/model.onnx.data").read_bytes() != before["model.onnx.data"]


def test_a_foreign_folder_is_not_overwritten(compress):
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("years of work")
    message = one_paragraph(compress("export", "net.py:make", "-o", "out", "--overwrite"))
    assert "is not an artifact" in message
    assert "thesis.txt" in message
    assert Path("out/thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_one_paragraph(compress):
    message = one_paragraph(compress("export", "net.py:make", "-o", "net.py/out"))
    assert "cannot write into" in message


def test_a_path_with_spaces_is_a_path(compress, folder):
    assert compress("export", "net.py:make", "-q", "-o", "a folder/with spaces").code == 0
    assert compress("inspect", "a folder/with spaces").code == 0


def test_a_recipe_repeats_a_run_and_flags_beside_it_win(compress):
    assert compress("export", "net.py:make", *PRUNE, "--ignore", "0", "-o", "first", "-q").code == 0
    assert compress("export", "--recipe", "first", "-o", "second", "-q").code == 0
    for name in ("model.onnx", "model.onnx.data", "recipe.yaml"):
        assert Path("first", name).read_bytes() == Path("second", name).read_bytes()
    assert (
        compress("export", "--recipe", "first/recipe.yaml", "-s", "1:4", "--seed", "3", "-o", "third", "-q").code == 0
    )
    first, third = Recipe.read(Path("first")), Recipe.read(Path("third"))
    assert str(third) == str(first).replace("2:4", "1:4").replace("float32}", "float32,seed=3}")


def test_the_written_recipe_holds_every_default(compress):
    assert compress("export", "net.py:make", *PRUNE, "-o", "out", "-q").code == 0
    written = yaml.safe_load(Path("out/recipe.yaml").read_text())
    assert written["passes"][0]["scope"] == "site"
    assert written["backend"] == "onnxruntime"


# *** a run that is stopped ***


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, entry.INTERRUPTED, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, entry.TERMINATED, id="a polite kill", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_leaves_nothing(folder, number, code):
    running = subprocess.Popen(
        command("export", "net.py:slow", "-o", "out"), stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    wait_for(folder / "started")
    assert any(name.startswith(".out.partial-") for name in leftovers(folder))
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert leftovers(folder) == []
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert err == "compress: interrupted; nothing was written\n"


def heed_ctrl_c() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored: perhaps these tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_run_that_is_killed_leaves_nothing_under_the_name_and_the_next_one_cleans_up(compress, folder):
    running = subprocess.Popen(command("export", "net.py:slow", "-o", "out"))
    wait_for(folder / "started")
    running.kill()
    running.wait(timeout=60)
    [left] = leftovers(folder)
    assert left.startswith(".out.partial-")
    assert compress("export", "net.py:make", "-o", "out", "-q").code == 0
    assert leftovers(folder) == ["out"]


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_said_and_leaves_nothing(folder):
    limit = 4096

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ran = process("export", "net.py:make", "-o", "out", preexec_fn=small_files)
    assert "the disk is full while writing" in one_paragraph(ran)
    assert leftovers(folder) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_leaves_nothing(compress, folder, monkeypatch, number):
    def full(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(OnnxRuntime, "build", full)
    assert "the disk is full while writing" in one_paragraph(compress("export", "net.py:make", "-o", "out"))
    assert leftovers(folder) == []


# *** mistakes of ours ***


@pytest.mark.parametrize("error", [InternalError("a promise is broken"), ZeroDivisionError("by zero")])
def test_a_bug_of_ours_keeps_its_traceback(compress, monkeypatch, error):
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(driver, "export", fail)
    ran = compress("export", "net.py:make")
    assert (ran.code, ran.out) == (entry.BUG, "")
    assert ran.err.startswith("Traceback")
    assert "this is a bug of ours" in ran.err
