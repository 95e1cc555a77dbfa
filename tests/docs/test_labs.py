"""The two labs of the README, as it says them: on the zoo, and on real models where they are beside the repository."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests import commands

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
REAL = {
    "tiny-resnet": f"{ROOT}/benchmarks/cifar_resnet.py:resnet20 --data {SHARED}/data --recover-samples 2000",
    "tiny-gpt2": f"{SHARED}/models/gpt2-mini --data {SHARED}/data/wikitext-2",
}
SHARES = {"tiny-resnet": {"0.5", "0.7", "0.9"}, "tiny-gpt2": {"0.3", "0.5", "0.7"}}
beside = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="../shared is not beside the repository")


def lab(model: str) -> list[str]:
    """The README's commands for a model, in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    section = text.partition("## Two labs")[2].partition("\n## ")[0]
    lines = re.findall(r"^    compress (.*)$", section, re.MULTILINE)
    follow = [line for line in lines if not line.startswith("sweep") and model == "tiny-gpt2"]
    return [line for line in lines if line.startswith(f"sweep {model} ")] + follow


def typed(line: str) -> commands.Ran:
    ran = commands.compress(*shlex.split(line))
    assert ran.code == 0, f"{line}\n{ran.out}\n{ran.err}"
    return ran


@pytest.mark.parametrize("real", [pytest.param(False, id="zoo"), pytest.param(True, id="real", marks=beside)])
@pytest.mark.parametrize(("model", "n"), [("tiny-resnet", 6), ("tiny-gpt2", 3)])
def test_a_lab_runs_as_the_readme_says_it(model, n, real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in lab(model):
        typed(line.replace(model, f"{REAL[model]} --output {model}-sweep", 1) if real and "sweep " in line else line)
    found = json.loads(Path(f"{model}-sweep/sweep.json").read_text())
    assert found["passed"]
    assert len(found["points"]) == n
    assert {point["varied"]["sparsity"] for point in found["points"]} == SHARES[model]
    if model == "tiny-resnet":
        scores = {tuple(point["varied"].values()): point["value"] for point in found["points"]}
        assert scores["0.9", "finetune"] > scores["0.9", "none"]
