"""Which architectures lose channels: groups, what goes with them, and whether the cut is exact.

python -m benchmarks.channel_coverage [NAME ...] [--times]
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from compressor.channels.blocks import find_blocks
from compressor.channels.cut import cut, mask
from compressor.channels.groups import ChannelGroup, find_groups
from compressor.errors import UserError
from compressor.graph import Graph
from tests.compressor.laws import some, unsettle
from tests.models import graphs

HEADER = (
    "| architecture | groups that can be cut | units | blocks | weights that can go | largest difference | kept whole |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all when none is named")
    parser.add_argument("--times", action="store_true", help="time the search and the cut of four models of full size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.times:
        print("| model | weights | found in s | cut in s |\n| --- | --- | --- | --- |")
        for name, make in FULL.items():
            print(timed(name, make()), flush=True)
        return
    print(f"{HEADER}\n{'| --- ' * 7}|")
    for name, make in makers().items():
        if not options.names or name in options.names:
            print(row(name, make), flush=True)


def makers() -> dict[str, Callable[[], Graph]]:
    found = graphs.everything()
    if graphs.SHARED.is_dir():
        found |= {f"CIFAR-10 {name}": partial(graphs.cifar, name) for name in ("resnet20", "resnet56")}
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return found
    return found | {f"torchvision {n}": partial(graphs.torchvision_model, n) for n in graphs.TORCHVISION}


def row(name: str, make: Callable[[], Graph]) -> str:
    try:
        graph = make()
        groups = find_groups(graph)
    except UserError as error:
        return f"| {name} | refused: {error.what} ({error.found}) | | | | | |"
    unsettle(graph)
    free = [group for group in groups if not group.frozen]
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(group.kind for group in free).items())
    cells = (
        kinds or "none",
        sum(group.units for group in free),
        len(find_blocks(graph)),
        f"{removable(graph, free):.0%}",
    )
    return f"| {name} | {' | '.join(map(str, cells))} | {difference(graph, groups):.0e} | {kept_whole(groups)} |"


def removable(graph: Graph, free: list[ChannelGroup]) -> float:
    """The share of the weights that goes when one unit of every group is left."""
    smallest = graph.copy()
    cut(smallest, {group.name: torch.arange(group.units) < 1 for group in free})
    return 1 - count(smallest) / count(graph)


def count(graph: Graph) -> int:
    return sum(x.numel() for x in graph.module.parameters())


def difference(graph: Graph, groups: list[ChannelGroup]) -> float:
    """Of the first output, between a quarter of every group cut and the same masked, in float64."""
    keep, feeds, first = some(groups), dict(graph.example), graph.outputs[0].name
    masked, smaller = graph.copy(), graph.copy()
    mask(masked, keep)
    cut(smaller, keep)
    return float((masked.run(feeds)[first] - smaller.run(feeds)[first]).abs().max())


def kept_whole(groups: list[ChannelGroup]) -> str:
    reasons = Counter((group.kind, group.frozen) for group in groups if group.frozen)
    return "; ".join(f"{n} {kind}: {why}" for (kind, why), n in reasons.items()) or "nothing"


# *** models of full size ***


def _gpt2() -> Graph:
    from transformers import GPT2Config, GPT2LMHeadModel

    from compressor.models.causal_lm import CausalLM
    from compressor.source import Options

    return CausalLM("gpt2", "gpt2", GPT2LMHeadModel(GPT2Config()).eval(), Options()).lower()


def _pictures(config: str, model: str) -> Graph:
    import transformers

    from compressor.graph import Port, lower

    made = getattr(transformers, model)(getattr(transformers, config)()).eval()
    ports = (Port("pixel_values", {0: "batch"}),), (Port("logits", {0: "batch"}),)
    example = {"pixel_values": torch.randn(2, 3, 224, 224)}
    return lower(made, lambda x: (made(pixel_values=x).logits,), example, *ports)


FULL: dict[str, Callable[[], Graph]] = {
    "GPT-2 124M": _gpt2,
    "ResNet-50": lambda: _pictures("ResNetConfig", "ResNetForImageClassification"),
    "ViT-B/16": lambda: _pictures("ViTConfig", "ViTForImageClassification"),
    "Swin-T": lambda: _pictures("SwinConfig", "SwinForImageClassification"),
}


def timed(name: str, graph: Graph) -> str:
    """Seconds of processor time, since other work may share the machine."""
    start = time.process_time()
    groups = find_groups(graph)
    found, before = time.process_time() - start, count(graph)
    start = time.process_time()
    cut(
        graph,
        {group.name: torch.arange(group.units) < max(1, group.units // 2) for group in groups if not group.frozen},
    )
    seconds = time.process_time() - start
    return f"| {name} | {before / 1e6:.1f} M to {count(graph) / 1e6:.1f} M | {found:.2f} | {seconds:.2f} |"


if __name__ == "__main__":
    main()
