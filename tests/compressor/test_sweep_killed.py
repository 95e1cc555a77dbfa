"""A sweep that is killed while a point learns: the next run goes on from the checkpoint, to the same bytes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.commands.sweeping import run
from compressor.passes.fit import Fit
from tests import commands

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]

ARGUMENTS = (
    "sweep", "tiny-resnet", "--sparsity", "2:4", "--methods", "magnitude", "--refit", "0", "--samples", "64",
    "--recover", "finetune", "--recover-epochs", "0.5", "--json",
)  # fmt: skip


@pytest.fixture
def written(monkeypatch) -> list[bytes]:
    """The weights of each artifact that a sweep in this process has made."""
    found: list[bytes] = []
    point_of = run.point_of

    def kept(report, artifact, varied):
        found.append((artifact / "model.onnx.data").read_bytes())
        return point_of(report, artifact, varied)

    monkeypatch.setattr(run, "point_of", kept)
    return found


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """The steps of training that this process has taken."""
    taken: list[int] = []
    descend = Fit._descend

    def counted(fit, step):
        taken.append(step)
        return descend(fit, step)

    monkeypatch.setattr(Fit, "_descend", counted)
    return taken


def checkpoint(cache: Path) -> Path:
    """The first that appears."""
    return next(found for _ in ticks(300) for found in cache.rglob("recover-*.safetensors"))


def ticks(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)


def test_a_killed_training_goes_on_inside_the_next_sweep_to_the_same_bytes(tmp_path, monkeypatch, written, steps):
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "compressor.cli", *ARGUMENTS]
    running = subprocess.Popen(command, env=os.environ | {"COMPRESS_CACHE": str(cache)}, stdout=subprocess.DEVNULL)
    try:
        left = checkpoint(cache)
    finally:
        running.kill()
        running.wait(timeout=60)
    assert left.exists()

    monkeypatch.setenv("COMPRESS_CACHE", str(cache))
    assert commands.compress(*ARGUMENTS).code == 0
    gone_on, last = steps[0], steps[-1]
    assert gone_on > 0
    assert not left.exists()
    resumed, n = written[-1], len(written)

    steps.clear()
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "another"))
    assert commands.compress(*ARGUMENTS).code == 0
    assert (steps[0], steps[-1]) == (0, last)
    assert written[-1] == resumed
    assert len(written) == n + 2  # the dense model again, too
