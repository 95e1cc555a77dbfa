"""Time and memory of pruning GPT-2 at full size (124 M parameters, random weights: speed does not depend on them).

    python -m benchmarks.scale

prints seconds of the pure forward passes of calibration, of statistics and solve beside them, and the peak memory of
the whole process while it captures, calibrates and prunes. Calibration runs every block twice: once to be seen, once
with its new weights; so the pure forward passes are two.
"""

import argparse
import resource
import time
from unittest.mock import patch

import torch

from compressor.calibrate import calibrate
from compressor.graph import Feeds, Graph
from compressor.models.causal_lm import CausalLM
from compressor.passes.sparsify import Sparsify
from compressor.pipeline import Context, choose
from compressor.progress import QUIET
from compressor.run import environment
from compressor.source import Options
from compressor.statistics import Statistics


def make() -> CausalLM:
    """A source around GPT-2 of full size with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return CausalLM("gpt2-random", "gpt2-random", GPT2LMHeadModel(GPT2Config()).eval(), Options())


def feeds(source: CausalLM, samples: int, window: int) -> list[Feeds]:
    ids = torch.randint(50257, (samples, window), generator=torch.Generator().manual_seed(0))
    return [source.feeds(batch) for batch in ids.split(8)]


def pure_forward(graph: Graph, batches: list[Feeds]) -> float:
    """Seconds of calibration's two forward passes with no statistics and nothing solved."""
    sites, _ = choose(graph.sites, ("*",), ())
    start = time.perf_counter()
    with patch.object(Statistics, "add", lambda self, X, Z=None: None):
        for _ in calibrate(graph, sites, batches, seed=0, progress=QUIET):
            pass
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = make()
    graph = source.lower()
    batches = feeds(source, options.samples, options.window)
    print(", ".join(f"{name} {version}" for name, version in environment().items()))
    print(f"{options.samples} windows of {options.window} tokens, 1 thread\n")
    for _ in range(options.rounds):
        before = pure_forward(graph, batches)
        start = time.perf_counter()
        Sparsify("2:4", samples=options.samples).run(graph, Context(lambda n: batches))
        whole = time.perf_counter() - start
        after = pure_forward(graph, batches)
        forward = (before + after) / 2
        print(f"forward passes {forward:.1f} s (before {before:.1f}, after {after:.1f}); the whole pass {whole:.1f} s;")
        print(f"statistics and solve {whole - forward:.1f} s = {(whole - forward) / forward:.2f} x the forward passes")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
