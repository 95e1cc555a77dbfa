"""What 8 and 4 bits bring on ONNX Runtime and what they cost, beside float32 in the same run, on one thread.

    python -m benchmarks.quantization                       everything below
    python -m benchmarks.quantization --only gpt2           file, prefill and decode of a GPT-2 of 124 M parameters
    python -m benchmarks.quantization --only resnet18       pictures of 224 x 224, whole and with half the channels
    python -m benchmarks.quantization --only layers         single layers alone: what kernels give at best
    python -m benchmarks.quantization --only half           a layer of 4 bits in float32, and in float16
    python -m benchmarks.quantization --only convolutions   the same of each convolution of ResNet-18
    python -m benchmarks.quantization --only products       the matrices of GPT-2 alone, one row
    python -m benchmarks.quantization --only accuracy       gpt2-mini and ResNet-20, trained, scored in torch

Speed and size are of random weights, on which they do not depend. Times are of the wall, and of the thread that
computes, which other work on the machine does not stop.
"""

import argparse
import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.clocks import clocked, faster
from benchmarks.convolutions import convolutions
from benchmarks.scale import feeds, make
from compressor.artifact import folder_size
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.driver import open_source
from compressor.graph import Feeds, Graph, Port, Run, lower
from compressor.models.causal_lm import CausalLM
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.proof.report import score_drop
from compressor.recipe import Recipe
from compressor.run import environment

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
KINDS = {
    "int8": "quantize{kind=int8,sweeps=0,embeddings=true}",
    "int8-dynamic": "quantize{kind=int8-dynamic,sweeps=0,embeddings=true}",
    "int4": "quantize{kind=int4,sweeps=0,embeddings=true}",
}
ACCURACY = ("kind=int8", "kind=int8-dynamic", "kind=int4,sweeps=0", "kind=int4")
backend = OnnxRuntime()

Artifact = tuple[Run, int]  # the call, and the bytes of its file


# *** speed and size ***


def gpt2() -> None:
    """The whole model, its tied head and embedding in 8 bits, stored once."""
    source = make()
    weights = {name: x.clone() for name, x in source.model.state_dict().items()}

    def graph() -> Graph:
        source.model.load_state_dict(weights)
        return source.lower()

    with artifacts(graph, KINDS, feeds(source, 4, 128)) as made:
        _table("GPT-2, 124 M parameters", made, _calls(source, made["float32"][0]))


def _calls(source: CausalLM, run: Run) -> dict[str, Feeds]:
    """128 tokens at once, and one token after them."""
    [prefill] = feeds(source, 1, 128)
    past = {
        name.replace("present", "past_key_values"): x for name, x in run(prefill).items() if name.startswith("present")
    }
    one = source.feeds(prefill["input_ids"][:, :1], torch.ones(1, 129, dtype=torch.long), past)
    return {"prefill 128": prefill, "decode at 128": one}


def resnet18() -> None:
    """ResNet-18, and a narrower one in place of one that channels were removed from."""
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    one = {"int8": KINDS["int8"]}
    with (
        artifacts(lambda: captured(resnet(64), x), one, [{"x": x}]) as whole,
        artifacts(lambda: captured(resnet(32), x), one, [{"x": x}]) as half,
    ):
        narrow = {f"half the channels, {name}": artifact for name, artifact in half.items()}
        _table("ResNet-18 at 224", whole | narrow, {"one picture": {"x": x}})


def layers() -> None:
    """One layer alone, nothing between it and its input."""
    for name, layer, x in (
        ("768 to 3072, 128 rows", nn.Linear(768, 3072), torch.randn(128, 768)),
        ("768 to 3072, one row", nn.Linear(768, 3072), torch.randn(1, 768)),
        ("768 to 50257, one row", nn.Linear(768, 50257, bias=False), torch.randn(1, 768)),
        ("3x3, 128 channels, 28 x 28", nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 28, 28)),
    ):
        kinds = {kind: text for kind, text in KINDS.items() if kind == "int8" or isinstance(layer, nn.Linear)}
        both = torch.cat([x, x]) if len(x) == 1 else x  # an axis that varies is not captured at length 1
        with artifacts(lambda layer=layer, both=both: captured(layer, both), kinds, [{"x": both}]) as made:  # type: ignore[misc]
            _table("One layer alone", made, {name: {"x": x}})


def half() -> None:
    """One layer alone in 4 bits, with scales and activations of float32, and of float16."""
    layer, text = nn.Linear(768, 3072), parse_pass(KINDS["int4"])
    for rows in (128, 1):
        x = torch.randn(rows, 768, generator=torch.Generator().manual_seed(0))
        both, given = torch.cat([x, x]), {"x": x.half()}
        graph, in_half = captured(copy.deepcopy(layer), both), captured(copy.deepcopy(layer).half(), both.half())
        run_pipeline(graph, [text], Context(lambda n: [], kernels=backend.quantizes))
        graph.repeat_on(in_half)
        four = {"int4": KINDS["int4"]}
        with tempfile.TemporaryDirectory() as folder, artifacts(lambda: captured(layer, both), four, []) as made:  # noqa: B023
            backend.build(in_half, Path(folder))
            run = backend.open(Path(folder), threads=1)
            made["int4, float16"] = (lambda _: run(given)), folder_size(Path(folder), "model.onnx*")  # noqa: B023
            _table(
                "One layer alone, 4 bits in half precision",
                made,
                {f"768 to 3072, {rows} row{'s' * (rows > 1)}": {"x": x}},
            )


def products() -> None:
    """The matrices of GPT-2, 124 M, one after another and nothing else: what a decoded token gains at best."""
    x = torch.randn(1, 768, generator=torch.Generator().manual_seed(0))
    # In the model the head shares its weight with the embedding, and has 8 bits of any kind.
    kinds = {kind: text.replace("int4", "int4,wide=[head.weight]") for kind, text in KINDS.items()}
    both = torch.cat([x, x])
    with artifacts(lambda: captured(_Products(), both), kinds, [{"x": torch.randn(64, 768)}]) as made:
        _table("The matrices of GPT-2, 124 M, alone", made, {"one row": {"x": x}})


class _Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [(768, 2304), (768, 768), (768, 3072), (3072, 768)] * 12
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.head = nn.Linear(768, 50257, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x[:, : layer.in_features])  # of queries, keys and values the first alone
        return self.head(x)


def resnet(width: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = [width * 2**i for i in range(4)]
    config = ResNetConfig(embedding_size=width, hidden_sizes=sizes, depths=[2, 2, 2, 2], layer_type="basic")
    config.num_labels = 1000
    torch.manual_seed(0)
    model = ResNetForImageClassification(config).eval()
    return _Logits(model)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def captured(module: nn.Module, x: torch.Tensor) -> Graph:
    both = torch.cat([x, x]) if len(x) == 1 else x
    batch = {0: "batch"}
    return lower(module.eval(), lambda x: (module(x),), {"x": both}, (Port("x", batch),), (Port("y", batch),))


@contextmanager
def artifacts(
    graph: Callable[[], Graph], kinds: Mapping[str, str], batches: list[Feeds]
) -> Iterator[dict[str, Artifact]]:
    """The model in float32, then in each kind, as files that are open while this lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        made: dict[str, Artifact] = {}
        for name, text in {"float32": "", **kinds}.items():
            folder = Path(scratch) / name
            folder.mkdir()
            one = graph()
            if text:
                run_pipeline(one, [parse_pass(text)], Context(lambda n: batches, kernels=backend.quantizes))
            backend.build(one, folder)
            left = [site for site, found in backend.stored(folder).items() if found.floats]
            assert not left, left
            made[name] = backend.open(folder, threads=1), folder_size(folder, "model.onnx*")
        yield made


def _table(title: str, made: Mapping[str, Artifact], workloads: Mapping[str, Feeds]) -> None:
    dense = made["float32"][1]
    columns = " | ".join(f"{name}, ms p50 | faster (quartiles) | by the thread's clock" for name in workloads)
    print(f"\n{title}\n\n| | file MB | of float32 | {columns} |")
    print("| --- " * (3 + 3 * len(workloads)) + "|")
    rows = [clocked({name: partial(run, x) for name, (run, _) in made.items()}, 20.0) for x in workloads.values()]
    for name, (_, size) in made.items():
        cells = [name, f"{size / 1e6:.1f}", f"{size / dense:.2f}"]
        for row in rows:
            (wall, thread), (dense_wall, dense_thread) = row[name], row["float32"]
            cells += [
                f"{np.median(wall):.2f} (n = {len(wall)})",
                faster(dense_wall, wall),
                faster(dense_thread, thread),
            ]
        print(f"| {' | '.join(cells)} |", flush=True)


# *** accuracy ***


def accuracy() -> None:
    """Trained models, scored in torch, which rounds as the kernels do."""
    data = SHARED / "data"
    for model, where, samples in (
        (SHARED / "models" / "gpt2-mini", data / "wikitext-2", 150),
        (f"{ROOT}/benchmarks/cifar_resnet.py:resnet20", data, 10_000),
    ):
        if where.exists():
            _scores(str(model), str(where), samples)


def _scores(model: str, data: str, samples: int) -> None:
    source = open_source(model, Recipe(model=model, data=data))
    graph, evaluation = source.lower(), source.evaluation(samples)
    assert evaluation is not None
    weights = {name: x.clone() for name, x in graph.module.state_dict().items()}
    dense = evaluation.score(graph.run)
    samples_are = evaluation.description.rpartition("/")[2]
    print(f"\n{Path(model).name}: {dense.metric} {dense.value:.2f} in float32; {samples_are}\n")
    print(f"| quantize | {dense.metric} | worse by |\n| --- | --- | --- |")
    for options in ACCURACY if not dense.higher_is_better else ACCURACY[:1]:
        graph = source.lower()
        graph.module.load_state_dict(weights)
        run_pipeline(
            graph, [parse_pass(f"quantize{{{options}}}")], Context(source.calibration, kernels=backend.quantizes)
        )
        score = evaluation.score(graph.run)
        drop, error = score_drop(dense, score)
        worse = f"{drop:+.2f} points ± {error:.2f}"
        if not dense.higher_is_better:
            worse = f"{math.log(score.value / dense.value):+.4f} nats ± {error / (100 + drop):.4f}"
        print(f"| {options} | {score.value:.2f} | {worse} |", flush=True)


PARTS = {
    "layers": layers,
    "half": half,
    "convolutions": convolutions,
    "products": products,
    "resnet18": resnet18,
    "gpt2": gpt2,
    "accuracy": accuracy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="where speed is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in set(KINDS) - set(options.kinds):
        del KINDS[kind]
    print(", ".join(f"{name} {version}" for name, version in environment().items()), processor(), sep="; ")
    for name in options.only:
        PARTS[name]()


def processor() -> str:
    """Which of the processor's instructions the speed of codes depends on."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text().split() if path.exists() else []
    has = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return f"instructions: {', '.join(has) or 'unknown'}"


if __name__ == "__main__":
    main()
