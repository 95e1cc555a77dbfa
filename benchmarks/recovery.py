"""What training after pruning brings back: score and minutes, every run from the same dense weights.

    python -m benchmarks.recovery MODEL [--data FOLDER] [--first 'sparsify{pattern=2:4}'] [--only 'method=distill' ...]

The first line of the table is the model after the passes of --first; every other is one recipe of `recover` after them.
"""

import argparse
import time

import torch

from compressor.driver import open_source
from compressor.pipeline import Context, Pass, make_pass, parse_pass, run_pipeline
from compressor.proof.report import score_drop
from compressor.recipe import Recipe
from compressor.run import environment
from compressor.spec import parse_specs

RECIPES = ("method=finetune", "method=distill,hidden=0", "method=distill")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    source = open_source(options.model, Recipe(data=options.data, window=options.window))
    evaluation = source.evaluation(options.samples)
    if evaluation is None:
        raise SystemExit("the data has no labels to score against")
    first = [make_pass(*spec) for spec in parse_specs(options.first)]
    dense_graph = source.lower()
    dense = evaluation.score(dense_graph.run)
    unit = "points" if dense.higher_is_better else "%"
    print(f"dense: {dense.metric} {dense.value:.2f} (standard error {dense.stderr:.2f}); {evaluation.description}")
    print(f"threads: {options.threads}; {', '.join(f'{name} {v}' for name, v in environment().items())}", end="\n\n")
    print(f"| after {options.first} | {dense.metric} | worse than dense | min |\n| --- | --- | --- | --- |")
    notes: list[str] = []
    for recipe in ("", *(options.only or RECIPES)):
        graph = dense_graph.copy()
        passes: list[Pass] = [*first, *([parse_pass(f"recover{{{recipe}}}")] if recipe else [])]
        start = time.perf_counter()
        outcomes = run_pipeline(graph, passes, Context(source.calibration, dense=dense_graph, training=source.training))
        minutes = (time.perf_counter() - start) / 60
        score = evaluation.score(graph.run)
        drop, error = score_drop(dense, score)
        print(
            f"| {recipe or 'nothing'} | {score.value:.2f} | {drop:+.2f} {unit} ± {error:.2f} | {minutes:.1f} |",
            flush=True,
        )
        notes += [f"{recipe}: {note}" for outcome in outcomes for note in outcome.notes]
    print("", *notes, sep="\n\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--first", default="sparsify{pattern=2:4}", help="the passes before, with | between them")
    parser.add_argument("--only", nargs="+", help="options of recover, one recipe each")
    parser.add_argument("--samples", type=int, default=150, help="held-out samples")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
