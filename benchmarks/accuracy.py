"""What each option of `sparsify` buys on one model: score and seconds, every run from the same dense weights.

    python -m benchmarks.accuracy MODEL [--data FOLDER] [--sparsity 2:4] [--only 'method=admm,bias=true' ...]

Every line of the table is one recipe; without --only they are those of RECIPES, from SparseGPT to all options together.
"""

import argparse
import time

import torch

from compressor.driver import open_source
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.proof.report import score_drop
from compressor.recipe import Recipe
from compressor.run import environment

RECIPES = (
    "refit=0",
    "refit=10",
    "bias=true",
    "bias=true,match=dense",
    "bias=true,match=auto",
    "method=admm,refit=5,bias=true",
    "bias=true,reconstruct=64",
    "method=admm,refit=5,bias=true,match=auto,reconstruct=64",
    "method=admm,refit=5,bias=true,match=auto,reconstruct=200",
)


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    source = open_source(options.model, Recipe(data=options.data, window=options.window))
    graph = source.lower()
    evaluation = source.evaluation(options.samples)
    if evaluation is None:
        raise SystemExit("the data has no labels to score against")
    weights = {name: x.clone() for name, x in graph.module.state_dict().items()}
    dense = evaluation.score(graph.run)
    print(f"dense: {dense.metric} {dense.value:.2f} (standard error {dense.stderr:.2f}); {evaluation.description};")
    print(f"calibrated on {options.calibration_samples} samples from {source.calibration_description}; 1 thread")
    print(", ".join(f"{name} {version}" for name, version in environment().items()), end="\n\n")
    print(f"| sparsify at {options.sparsity} | {dense.metric} | worse than dense | s |\n| --- | --- | --- | --- |")
    for recipe in options.only or RECIPES:
        graph.module.load_state_dict(weights)
        one = parse_pass(f"sparsify{{pattern={options.sparsity},samples={options.calibration_samples},{recipe}}}")
        start = time.perf_counter()
        run_pipeline(graph, [one], Context(source.calibration))
        seconds = time.perf_counter() - start
        score = evaluation.score(graph.run)
        drop, error = score_drop(dense, score)
        unit = "points" if dense.higher_is_better else "%"
        print(f"| {recipe} | {score.value:.2f} | {drop:+.2f} {unit} ± {error:.2f} | {seconds:.1f} |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--sparsity", default="2:4")
    parser.add_argument("--only", nargs="+", help="options of sparsify, one recipe each")
    parser.add_argument("--samples", type=int, default=150, help="held-out samples")
    parser.add_argument("--calibration-samples", type=int, default=128)
    parser.add_argument("--window", type=int, default=256)
    return parser.parse_args()


if __name__ == "__main__":
    main()
