"""Methods and patterns compared on one model, in torch, on the same samples: one table.

    python -m benchmarks.methods MODEL --data FOLDER > table.md

Every run starts from the same dense weights. `refit` is the number of conjugate-gradient steps after the mask.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from compressor.driver import open_source
from compressor.graph import Graph
from compressor.passes.methods import METHODS
from compressor.passes.sparsify import Sparsify
from compressor.pipeline import Context, run_pipeline
from compressor.proof.report import score_drop
from compressor.recipe import Recipe
from compressor.run import environment
from compressor.source import Score

PATTERNS, REFITS = ("2:4", "0.5", "0.7"), (0, 10)


@dataclass(frozen=True)
class Result:
    method: str
    refit: int
    pattern: str
    score: Score
    seconds: float


def results(graph: Graph, source: object, score: object, samples: int) -> Iterator[Result]:
    dense = {name: x.clone() for name, x in graph.module.state_dict().items()}
    for method in METHODS:
        for refit in REFITS:
            for pattern in PATTERNS:
                graph.module.load_state_dict(dense)
                start = time.perf_counter()
                sparsify = Sparsify(
                    pattern,
                    method=method,
                    iterations=24,
                    refit=refit,
                    bias=False,
                    match="pruned",
                    batchnorm=False,
                    samples=samples,
                )
                run_pipeline(graph, [sparsify], Context(source.calibration))  # type: ignore[attr-defined]
                seconds = time.perf_counter() - start
                yield Result(method, refit, pattern, score(graph.run), seconds)  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--samples", type=int, default=150, help="held-out samples")
    parser.add_argument("--calibration-samples", type=int, default=128)
    parser.add_argument("--window", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = open_source(options.model, Recipe(data=options.data, window=options.window))
    graph = source.lower()
    evaluation = source.evaluation(options.samples)
    if evaluation is None:
        raise SystemExit("the data has no labels to score against")
    dense = evaluation.score(graph.run)
    print(f"dense: {dense.metric} {dense.value:.2f} (standard error {dense.stderr:.2f}); {evaluation.description};")
    print(f"calibrated on {options.calibration_samples} samples from {source.calibration_description}; 1 thread")
    print(", ".join(f"{name} {version}" for name, version in environment().items()), end="\n\n")
    print(f"| method | refit | {' | '.join(f'{p} | worse than dense | s' for p in PATTERNS)} |")
    print("| --- " * (2 + 3 * len(PATTERNS)) + "|")
    row: list[str] = []
    for result in results(graph, source, evaluation.score, options.calibration_samples):
        drop, error = score_drop(dense, result.score)
        unit = "points" if dense.higher_is_better else "%"
        row += [f"{result.score.value:.2f}", f"{drop:+.2f} {unit} ± {error:.2f}", f"{result.seconds:.0f}"]
        if result.pattern == PATTERNS[-1]:
            print(f"| {result.method} | {result.refit} | {' | '.join(row)} |", flush=True)
            row = []


if __name__ == "__main__":
    main()
