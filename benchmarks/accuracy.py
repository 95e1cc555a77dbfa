"""Methods of `sparsify` x patterns x models on the same samples: score, drop, processor seconds; spread over seeds.

    python -m benchmarks.accuracy                                   # everything, for hours; a killed run goes on
    python -m benchmarks.accuracy --models tiny-gpt2 --patterns 2:4 --seeds 1
    python -m benchmarks.accuracy --models resnet20 --recipes default 'refit=4,match=dense'
    python -m benchmarks.accuracy --show                            # the tables of what is measured, nothing more

What is measured is kept in --results, one entry for each run. A seed draws the calibration samples: of three times as
many, spread evenly over the data, every third. Each run starts from the same dense weights, on one thread.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.driver import open_source
from compressor.graph import Feeds, Graph
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.proof.report import score_drop
from compressor.recipe import PRESETS, Recipe
from compressor.run import environment
from compressor.source import Source

SHARED = Path(__file__).resolve().parents[2] / "shared"
RESULTS = Path(__file__).with_suffix(".json")
PATTERNS = ("2:4", "0.5", "0.6", "0.7")
SEEDS = 3
PLAIN = "bias=false,match=pruned,batchnorm=false"
RECIPES = {
    "magnitude": f"method=magnitude,refit=0,{PLAIN}",
    "wanda": f"method=wanda,refit=0,{PLAIN}",
    "sparsegpt": f"method=sparsegpt,refit=0,{PLAIN}",
    "sparsegpt, refitted": f"method=sparsegpt,refit=10,{PLAIN}",
    "admm": f"method=admm,iterations=48,refit=10,{PLAIN}",
    **dict.fromkeys(PRESETS),
}
"""By name: options of `sparsify`, or None for the preset of that name. Others as published: weights alone change."""


@dataclass(frozen=True)
class Subject:
    """A model and its data. scored, calibrated: samples. characters: of the test text, which ends there; all for 0."""

    model: str
    data: str | None
    scored: int
    calibrated: int
    characters: int = 0


SUBJECTS = {
    "tiny-gpt2": Subject("tiny-gpt2", None, 150, 128),
    # The first 150 windows of the test text.
    "gpt2-mini": Subject(str(SHARED / "models/gpt2-mini"), str(SHARED / "data/wikitext-2"), 150, 128, 124_055),
    "resnet20": Subject("benchmarks/cifar_resnet.py:resnet20", str(SHARED / "data"), 2000, 512),
    "resnet56": Subject("benchmarks/cifar_resnet.py:resnet56", str(SHARED / "data"), 2000, 512),
}


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        for name in [] if options.show else options.models:
            for key, result in _measured(name, options, results):
                results[key] = result
                options.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
                print(f"{key}: {result['value']:.2f} ({result['drop']:+.2f}) {result['seconds']:.0f} s", flush=True)
    print_tables(results)


def _measured(name: str, options: argparse.Namespace, results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every run on one model that is not among the results yet."""
    asked = [
        (f"{name} | {recipe} | {pattern} | {seed}", recipe, pattern, seed)
        for seed in range(options.seeds) for pattern in options.patterns for recipe in options.recipes
    ]  # fmt: skip
    missing = [one for one in asked if one[0] not in results]
    if not missing:
        return
    bench = Bench.of(SUBJECTS[name], options)
    for key, recipe, pattern, seed in missing:
        yield key, bench.run(recipe, pattern, seed) | {"environment": environment()}


class Bench:
    """One model, its dense weights and its dense score."""

    def __init__(self, source: Source, subject: Subject):
        evaluation = source.evaluation(subject.scored)
        if evaluation is None:
            raise SystemExit("the data has no labels to score against")
        self.source, self.subject, self.evaluation = source, subject, evaluation
        self.graph: Graph = source.lower()
        self.weights = {name: x.clone() for name, x in self.graph.module.state_dict().items()}
        self.dense = evaluation.score(self.graph.run)

    @staticmethod
    def of(subject: Subject, options: argparse.Namespace) -> "Bench":
        subject = Subject(
            subject.model, subject.data, options.scored or subject.scored, options.calibrated or subject.calibrated,
            subject.characters,
        )  # fmt: skip
        data = str(_shortened(subject, options.folder)) if subject.characters else subject.data
        return Bench(open_source(subject.model, Recipe(data=data, window=options.window)), subject)

    def run(self, recipe: str, pattern: str, seed: int) -> dict[str, Any]:
        chosen = PRESETS[recipe]["sparsify"] if recipe in PRESETS else {}
        text = ",".join(f"{name}={str(x).lower()}" for name, x in chosen.items()) or RECIPES.get(recipe) or recipe
        one = parse_pass(f"sparsify{{pattern={pattern},{text}}}")
        self.graph.module.load_state_dict(self.weights)
        start = time.process_time()  # on one thread; other work on the machine does not count
        # Presets ask for as many samples as suits them; here all have the same.
        drawn = self._drawn(self.subject.calibrated, seed)
        context = Context(lambda n: drawn, seed, is_logits=getattr(self.source, "is_logits", True))
        run_pipeline(self.graph, [one], context)
        seconds = time.process_time() - start
        score = self.evaluation.score(self.graph.run)
        drop, error = score_drop(self.dense, score)
        return {
            "metric": score.metric, "dense": self.dense.value, "value": score.value, "drop": drop, "error": error,
            "seconds": seconds, "recipe": text, "scored": self.evaluation.description,
        }  # fmt: skip

    def _drawn(self, n: int, seed: int) -> Sequence[Feeds]:
        batches = self.source.calibration(SEEDS * n)
        size = len(next(iter(batches[0].values())))
        whole = {name: torch.cat([batch[name] for batch in batches])[seed % SEEDS :: SEEDS] for name in batches[0]}
        parts = {name: x.split(size) for name, x in whole.items()}
        return [dict(zip(parts, one, strict=True)) for one in zip(*parts.values(), strict=True)]


def _shortened(subject: Subject, folder: Path) -> Path:
    """The subject's data with the beginning of its test text."""
    whole = Path(str(subject.data))
    short = folder / f"{whole.name}-start"
    short.mkdir(exist_ok=True)
    for path in whole.iterdir():
        text = path.read_text(encoding="utf-8")
        (short / path.name).write_text(text[: subject.characters] if "test" in path.name else text, encoding="utf-8")
    return short


def print_tables(results: dict[str, Any]) -> None:
    """A table for each model: a row for each method, a column for each pattern."""
    keys = [key.split(" | ") for key in results]
    for name in dict.fromkeys(key[0] for key in keys):
        first = next(one for key, one in results.items() if key.startswith(f"{name} | "))
        patterns = sorted({key[2] for key in keys if key[0] == name}, key=lambda one: _at(PATTERNS, one))
        print(f"\n## {name}\n\ndense: {first['metric']} {first['dense']:.2f}; {first['scored']}\n")
        print(f"| method | {' | '.join(f'{p} | s' for p in patterns)} |")
        print("| --- " * (1 + 2 * len(patterns)) + "|")
        for recipe in sorted({key[1] for key in keys if key[0] == name}, key=lambda one: _at(RECIPES, one)):
            cells = [cell for p in patterns for cell in _cells(results, f"{name} | {recipe} | {p} | ")]
            print(f"| {recipe} | {' | '.join(cells)} |")


def _at(known: Iterable[str], name: str) -> tuple[int, str]:
    """What is known in its order, then the rest."""
    places = {one: number for number, one in enumerate(known)}
    return places.get(name, len(places)), name


def _cells(results: dict[str, Any], prefix: str) -> list[str]:
    """The score, how much worse than dense it is, and the seconds: medians over seeds.

    Of the drop the lowest and the highest; of one seed the standard error.
    """
    found = [one for key, one in results.items() if key.startswith(prefix)]
    if not found:
        return ["", ""]
    unit = " %" if found[0]["metric"] == "perplexity" else ""
    value, seconds = (statistics.median(one[what] for one in found) for what in ("value", "seconds"))
    spread = _spread([one["drop"] for one in found]) if len(found) > 1 else f"± {found[0]['error']:.2f}, n=1"
    drop = statistics.median(one["drop"] for one in found)
    return [f"{value:.2f}, {drop:+.2f}{unit}{f' ({spread})' if spread else ''}", f"{seconds:.0f}"]


def _spread(values: list[float]) -> str:
    if len(values) == SEEDS and min(values) == max(values):
        return ""  # no calibration samples are read
    n = "" if len(values) == SEEDS else f", n={len(values)}"
    return f"{min(values):+.2f} to {max(values):+.2f}{n}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=[*SUBJECTS])
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES], help="names of RECIPES, or options of sparsify")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, SEEDS + 1))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--scored", type=int, help="held-out samples, other than the model's own number")
    parser.add_argument("--calibrated", type=int, help="calibration samples, likewise")
    parser.add_argument("--window", type=int, default=256)
    return parser.parse_args()


if __name__ == "__main__":
    main()
