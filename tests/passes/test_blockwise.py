"""Blocks that are kept: a killed run goes on after the last one, and ends in the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.graph import Graph
from compressor.passes.solve import BlockSolver
from compressor.pipeline import Context, Outcome, parse_pass, run_pipeline
from tests.compressor.tiny import graph_of, normal, same, state

ROOT = Path(__file__).resolve().parents[2]
BATCHES = [{"x0": normal(4, 4, 6, 6, seed=seed) + 0.3} for seed in range(6)]
RECIPES = (
    'sparsify{pattern=2:4,refit=2,bias=true,match=auto,batchnorm=true,permute=true,reconstruct=4,targets=["*weight"]}',
    "channels{amount=0.5,match=dense,batchnorm=true,reconstruct=4}",
)


def network() -> Graph:
    torch.manual_seed(0)

    def layer(c: int) -> list[nn.Module]:
        return [nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]

    return graph_of(nn.Sequential(*layer(4), *layer(8), *layer(8), nn.Flatten(), nn.Linear(288, 3)), BATCHES[0]["x0"])


def run(graph: Graph, text: str, kept: Path | None, batches: list[dict[str, Tensor]] = BATCHES) -> Outcome:
    return run_pipeline(graph, [parse_pass(text)], Context(lambda n: batches, kept=kept))[0]


class Killed(Exception):
    pass


def solves(monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> list[str]:
    """The first site of every block that is solved from now on; before block number `dies_at` the run dies."""
    seen: list[str] = []
    solve = BlockSolver.solve

    def watched(self, block):
        if len(seen) == dies_at:
            raise Killed
        seen.append(block.segment.sites[0].name)
        return solve(self, block)

    monkeypatch.setattr(BlockSolver, "solve", watched)
    return seen


@pytest.mark.parametrize("text", RECIPES, ids=["sparsify", "channels"])
def test_a_run_that_died_goes_on_after_the_last_whole_block_and_ends_in_the_same_bytes(tmp_path, text):
    whole = network()
    expected = run(whole, text, None)
    with pytest.MonkeyPatch.context() as patch:
        solves(patch, dies_at=2)
        with pytest.raises(Killed):
            run(network(), text, tmp_path)
    again = network()
    with pytest.MonkeyPatch.context() as patch:
        seen = solves(patch)
        outcome = run(again, text, tmp_path)
        assert len(seen) == len(list(tmp_path.iterdir())) - 2
    assert same(state(whole), state(again))
    assert outcome.rows == expected.rows


def test_a_process_that_is_killed_leaves_what_another_goes_on_from(tmp_path):
    code = "from pathlib import Path; from tests.passes import test_blockwise as t; t.die(Path({!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code.format(str(tmp_path))], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
    whole, again = network(), network()
    run(whole, RECIPES[0], None)
    with pytest.MonkeyPatch.context() as patch:
        seen = solves(patch)
        run(again, RECIPES[0], tmp_path)
    assert seen == ["6.weight", "10.weight"]
    assert same(state(whole), state(again))


def die(kept: Path) -> None:
    """What the killed process does."""
    solve, count = BlockSolver.solve, iter(range(2))

    def dying(self, block):
        if next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return solve(self, block)

    BlockSolver.solve = dying  # type: ignore[method-assign]
    run(network(), RECIPES[0], kept)


@pytest.mark.parametrize("what", ["options", "weights", "samples", "seed"])
def test_blocks_of_another_run_are_not_gone_on_from(tmp_path, what):
    text = 'sparsify{pattern=2:4,refit=2,targets=["*weight"]}'
    run(network(), text, tmp_path)
    graph, batches, seed = network(), BATCHES, 0
    if what == "options":
        text = text.replace("refit=2", "refit=3")
    if what == "weights":
        graph.sites[-1].weight.data.mul_(1.5)
    if what == "samples":
        batches = BATCHES[1:]
    if what == "seed":
        seed = 1
    with pytest.MonkeyPatch.context() as patch:
        seen = solves(patch)
        run_pipeline(graph, [parse_pass(text)], Context(lambda n: batches, seed=seed, kept=tmp_path))
    assert len(seen) == 4


def test_a_block_that_was_cut_off_is_solved_again(tmp_path):
    text = 'sparsify{pattern=2:4,refit=2,targets=["*weight"]}'
    whole = network()
    run(whole, text, tmp_path)
    [second] = tmp_path.glob("block-1-*")
    second.write_bytes(second.read_bytes()[:100])
    again = network()
    with pytest.MonkeyPatch.context() as patch:
        seen = solves(patch)
        run(again, text, tmp_path)
    assert seen == ["3.weight", "6.weight", "10.weight"]
    assert same(state(whole), state(again))
