"""The scripts behind benchmarks/ run, on as little as they take."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "benchmarks.scale": (["--samples", "2", "--window", "32"], "statistics and solve"),
    "benchmarks.methods": (
        ["tiny-gpt2", "--samples", "2", "--calibration-samples", "2", "--window", "16"],
        "| admm | 10",
    ),
    "benchmarks.recovery": (
        ["tiny-gpt2", "--only", "method=finetune,steps=1,batch=2,training=8", "--samples", "2", "--window", "16"],
        "| method=finetune,steps=1,batch=2,training=8 |",
    ),
    "benchmarks.channels": (
        ["accuracy", "tiny-resnet", "--samples", "8", "--rounds", "3"]
        + ["--only", "channels{amount=0.5,importance=magnitude}"],
        "| channels{amount=0.5,importance=magnitude} |",
    ),
    "benchmarks.widths": (["--rounds", "5"], "| 5 blocks less, in multiples of 8 | 48% |"),
    "benchmarks.quantization": (["--only", "layers", "convolutions"], "| all of the network's |"),
    "benchmarks.accuracy": (
        ["--models", "tiny-gpt2", "--patterns", "2:4", "--recipes", "refit=0", "--seeds", "1"]
        + ["--scored", "2", "--calibrated", "2", "--window", "16", "--results", "/dev/null"],
        "| refit=0 |",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_prints_its_table(script):
    arguments, wanted = SCRIPTS[script]
    done = subprocess.run([sys.executable, "-m", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout
