"""What the passes of a recipe would take, from the forward pass of one batch and the speed of a matrix product."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compressor.calibrate import input_of, measure
from compressor.graph import Feeds, Graph
from compressor.pipeline import Effort
from compressor.sites import WeightSite

GEMM = 768  # side of the product that tells how fast this machine is
SAMPLE = 8  # calibration samples run to tell what all of them take
WHOLE_BATCH = 64  # as many as a batch holds at most
HELD_OUT = 1 / 5  # of the batches
DISTILLED_AT_ONCE = 1 / 8  # of the samples, at most; as many are held out
DISTILLED_CHECKS = 9


@dataclass(frozen=True)
class Cost:
    """An estimate for the passes alone. memory: peak bytes. seconds: on this machine, as fast as it is right now."""

    memory: float
    seconds: float


def estimate(
    graph: Graph, sites: Sequence[WeightSite], batch: Feeds, n: int, n_back: int, efforts: Sequence[Effort]
) -> Cost:
    """From the forward pass of one batch and the speed of a matrix product, both measured now.

    n_back: samples that also go back through the whole dense model, which takes about two more forward passes and, for
    every site at once, the products of its inputs and those of its outputs' gradients. efforts: of the passes that go
    over the blocks.
    """
    one, rate = measure(graph, sites, batch), _rate()
    size = len(next(iter(batch.values())))
    times, back = n / size, n_back / size
    seconds = 2 * times * one.forward_seconds  # each segment runs once to be seen and once with its new weights
    solves = max((effort.solves for effort in efforts), default=1)
    for site, is_first in _first_of_input(sites):
        gram, solving = _flops(site, times * one.rows[site], is_first)
        seconds += (gram + solves * solving) / rate
    seconds += sum(_forwards(effort, one.n_segments, times, n) for effort in efforts) * one.forward_seconds
    rows = min(one.rows.values(), default=size) / size  # of one sample; what predicts reads as many as it predicts
    seconds += sum(_distilled(effort, rows, n) for effort in efforts) * one.forward_seconds / size
    products = {site: site.groups * site.d**2 + site.m**2 / site.groups for site in sites if n_back}
    seconds += 3 * back * one.forward_seconds
    seconds += sum(2 * back * one.rows[site] * product for site, product in products.items()) / rate
    weights = sum(x.numel() * x.element_size() for x in graph.module.parameters())
    # What learns has a gradient, two moments and the best state so far; the dense model is there as well.
    copies = 6 if any(effort.distilled for effort in efforts) else 1
    # The dense model's values at a cut, and what both models make of one block, are held as well.
    streams = 4 if any(effort.is_beside for effort in efforts) else 1
    held = streams * times * one.live_bytes + max(one.segment_statistics, default=0) + 4 * sum(products.values())
    return Cost(copies * weights + held + _workspace(sites), seconds)


def _forwards(effort: Effort, n_segments: int, times: float, n: int) -> float:
    """Forward passes of one batch through all segments, besides the two that every calibration batch takes.

    A check runs the batches held out, a fifth, through what follows a block: half of the model on average. A step of
    gradient descent takes about three forward passes of a batch through its block.
    """
    dense = times if effort.is_beside else 0.0
    checks = effort.checks * n_segments * (HELD_OUT * times + 1) / 2
    observed = times * min(effort.observed / n, 1.0)
    return dense + checks + 3 * effort.steps + observed


def _distilled(effort: Effort, rows: float, n: int) -> float:
    """Forward passes of one sample: a step takes one through the dense model and three through its own, each sample.

    A check takes one through each, of at most eight times as many samples as a step learns from.
    """
    learned = max(min(effort.rows / rows, n * DISTILLED_AT_ONCE), 1)
    held = min(8 * effort.rows / rows, n * DISTILLED_AT_ONCE)
    return 4 * effort.distilled * learned + 2 * DISTILLED_CHECKS * held


def _first_of_input(sites: Sequence[WeightSite]) -> list[tuple[WeightSite, bool]]:
    """Each site, and whether it is the first to read its input: later ones share the Gram matrix."""
    seen: set[Any] = set()
    pairs = []
    for site in sites:
        key = input_of(site)
        pairs.append((site, key not in seen))
        seen.add(key)
    return pairs


def _flops(site: WeightSite, rows: float, has_own_gram: bool) -> tuple[float, float]:
    """Of the Gram matrix; and of factorization, solve and ten refit steps."""
    d, m = site.d, site.m // site.groups
    gram = 2 * min(rows, 64 * d if site.layout == "kernel" else rows) * d * d if has_own_gram else 0
    return site.groups * gram, site.groups * (d**3 / 3 + 24 * m * d * d)


def _workspace(sites: Sequence[WeightSite]) -> float:
    """The largest site's factor and its copies of the weight, in float32."""
    return max((4 * (3 * site.d**2 + 6 * site.d * site.m / site.groups) for site in sites), default=0)


def _rate() -> float:
    """Floating-point operations per second of one matrix product, the best of three."""
    A, best = torch.randn(GEMM, GEMM), 0.0
    for _ in range(3):
        start = time.perf_counter()
        A @ A
        best = max(best, 2 * GEMM**3 / (time.perf_counter() - start))
    return best
