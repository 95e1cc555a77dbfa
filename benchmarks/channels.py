"""Channels removed: what it costs in accuracy, and what it brings in operations and milliseconds.

    python -m benchmarks.channels accuracy MODEL [--data FOLDER] [--only 'channels{amount=0.5}' ...]
    python -m benchmarks.channels speed [--only gpt2-124m ...]

`accuracy` runs each pipeline from the same dense weights, and times what it makes beside the dense model, by the
processor's clock on one example, in turn; `speed` removes half of every group of models with random
weights by magnitude, and times both in ONNX Runtime, in turn, on one thread.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.widths import timed
from compressor.channels.cut import cut
from compressor.channels.groups import find_groups
from compressor.driver import open_source
from compressor.graph import Graph, Run
from compressor.pipeline import Context, make_pass, run_pipeline
from compressor.proof.costs import costs
from compressor.proof.latency import compare
from compressor.proof.report import score_drop
from compressor.recipe import Recipe
from compressor.registry import load
from compressor.run import environment
from compressor.spec import parse_specs

PIPELINES = (
    "channels{amount=0.5,importance=magnitude,refit=false}",
    "channels{amount=0.5,importance=magnitude}",
    "channels{amount=0.5,importance=activation}",
    "channels{amount=0.5}",
)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"threads: {options.threads}; {', '.join(f'{name} {v}' for name, v in environment().items())}", end="\n\n")
    if options.what == "accuracy":
        accuracy(options)
    else:
        speed(options)


# *** accuracy ***


def accuracy(options: argparse.Namespace) -> None:
    source = open_source(options.model, Recipe(data=options.data, window=options.window))
    evaluation = source.evaluation(options.samples)
    if evaluation is None:
        raise SystemExit("the data has no labels to score against")
    dense_graph = source.lower()
    dense, before = evaluation.score(dense_graph.run), costs(dense_graph, dense_graph.example)
    unit = "points" if dense.higher_is_better else "%"
    print(f"dense: {dense.metric} {dense.value:.2f} (standard error {dense.stderr:.2f}); {evaluation.description}\n")
    print(f"| passes | {dense.metric} | worse than dense | FLOPs | times faster (quartiles) | CPU min |")
    print("| --- | --- | --- | --- | --- | --- |")
    notes: list[str] = []
    for text in options.only or PIPELINES:
        graph = dense_graph.copy()
        start = time.process_time()
        context = Context(source.calibration, dense=dense_graph, training=source.training)
        outcomes = run_pipeline(graph, [make_pass(*spec) for spec in parse_specs(text)], context)
        minutes = (time.process_time() - start) / 60
        score = evaluation.score(graph.run)
        drop, error = score_drop(dense, score)
        left = costs(graph, graph.example).flops / before.flops
        print(
            f"| {text.replace('|', ', then ')} | {score.value:.2f} | {drop:+.2f} {unit} ± {error:.2f} "
            f"| {left:.0%} | {_times_faster(dense_graph, graph, options.rounds)} | {minutes:.1f} |",
            flush=True,
        )
        notes += [note for outcome in outcomes for note in outcome.notes]
    print("", *notes, sep="\n\n")


def _times_faster(dense: Graph, graph: Graph, rounds: int) -> str:
    """In ONNX Runtime, on the first of the example's rows."""
    feeds = {name: x[:1].contiguous() for name, x in dense.example.items()}
    own = graph.adapt(feeds)
    with tempfile.TemporaryDirectory() as folder:
        before, after = _built(dense, folder, "dense"), _built(graph, folder, "smaller")
        times = timed({"dense": partial(before, feeds), "smaller": partial(after, own)}, rounds)
    low, middle, high = np.percentile(times["dense"] / times["smaller"], [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f}, n={rounds})"


# *** speed ***


def speed(options: argparse.Namespace) -> None:
    print("| model | weights | found and cut in s | FLOPs | ms, dense | ms, smaller | times faster (quartiles) | n |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in options.only or MODELS:
        print(f"| {name} | {' | '.join(_timed(open_source(MODELS[name](), Recipe())))} |", flush=True)


def _timed(source: Any) -> list[str]:
    dense = source.lower()
    smaller = dense.copy()
    start = time.perf_counter()
    groups = [group for group in find_groups(smaller) if not group.frozen]
    cut(smaller, {group.name: torch.arange(group.units) < (group.units + 1) // 2 for group in groups})
    seconds = time.perf_counter() - start
    feeds = dict(dense.example)
    before, after = costs(dense, feeds), costs(smaller, feeds)
    with tempfile.TemporaryDirectory() as folder:
        runs: Mapping[str, Run] = {
            "dense": _built(dense, folder, "dense"),
            "smaller": _built(smaller, folder, "smaller"),
        }
        own = smaller.adapt(feeds)
        found = compare({"dense": runs["dense"], "smaller": lambda _: runs["smaller"](own)}, "example", feeds)
    low, high = found.spread["smaller"]
    return [
        f"{before.parameters:,}", f"{seconds:.1f}", f"{after.flops / before.flops:.0%}",
        f"{found.latency['dense'].p50:.2f}", f"{found.latency['smaller'].p50:.2f}",
        f"{found.ratio['smaller']:.2f} ({low:.2f} to {high:.2f})", str(found.latency["smaller"].n),
    ]  # fmt: skip


def _built(graph: Graph, folder: str, name: str) -> Run:
    backend, path = load("backends", "onnxruntime")(), Path(folder) / name
    path.mkdir()
    backend.build(graph, path)
    return backend.open(path, threads=1)


# *** models with random weights ***


def _resnet(side: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """ResNet-18 of He et al. 2015."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000
    )
    return ResNetForImageClassification(config).eval(), torch.randn(1, 3, side, side)


def _resnet50() -> tuple[torch.nn.Module, torch.Tensor]:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval(), torch.randn(1, 3, 224, 224)


def _vit() -> tuple[torch.nn.Module, torch.Tensor]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig()).eval(), torch.randn(1, 3, 224, 224)


def _swin() -> tuple[torch.nn.Module, torch.Tensor]:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(SwinConfig()).eval(), torch.randn(1, 3, 224, 224)


def _gpt2() -> tuple[torch.nn.Module, torch.Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False)).eval(), torch.randint(0, 50257, (1, 64))


def _cifar() -> tuple[torch.nn.Module, torch.Tensor]:
    from benchmarks.cifar_resnet import ResNet

    return ResNet(9).eval(), torch.randn(1, 3, 32, 32)


MODELS: dict[str, Callable[[], tuple[torch.nn.Module, torch.Tensor]]] = {
    "resnet-56 at 32": _cifar,
    "resnet-18 at 32": lambda: _resnet(32),
    "resnet-18 at 224": lambda: _resnet(224),
    "resnet-50 at 224": _resnet50,
    "vit-b/16": _vit,
    "swin-t": _swin,
    "gpt2-124m": _gpt2,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("accuracy", "speed"))
    parser.add_argument("model", nargs="?", default="tiny-gpt2")
    parser.add_argument("--data")
    parser.add_argument("--only", nargs="+", help="pipelines, with | between passes; or names of models")
    parser.add_argument("--samples", type=int, default=150, help="held-out samples")
    parser.add_argument("--rounds", type=int, default=300, help="how often each is timed; of `accuracy`")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
