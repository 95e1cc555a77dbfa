"""Timing runtimes against each other: in turn, on one thread, in one run, so that noise falls on all alike."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from compressor.graph import Feeds, Run

WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: median, 90th percentile, number of calls."""

    p50: float
    p90: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """One workload on several runtimes.

    ratio: how many times faster each is than the first, the median over rounds; spread: its quartiles.
    """

    workload: str
    latency: dict[str, Latency]
    ratio: dict[str, float]
    spread: dict[str, tuple[float, float]]


def compare(
    runs: Mapping[str, Run], workload: str, feeds: Feeds, *, seconds: float = 4.0, rounds: tuple[int, int] = (10, 200)
) -> Comparison:
    """Time each run on the same inputs, one call each per round; the first is the reference.

    seconds: about how long to measure. rounds: least and most. The first WARM_UP calls of each are thrown away.
    """
    for run in runs.values():
        for _ in range(WARM_UP):
            run(feeds)
    once = sum(_milliseconds(run, feeds) for run in runs.values()) / 1000
    n = max(rounds[0], min(rounds[1], int(seconds / max(once, 1e-6))))
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(n):
        # Whoever goes second finds warmer or colder caches: take turns.
        for name in names if round_ % 2 == 0 else reversed(names):
            times[name].append(_milliseconds(runs[name], feeds))
    return compared(workload, times)


def compared(workload: str, times: Mapping[str, list[float]]) -> Comparison:
    """What the times of each run say, in milliseconds and in order; the first is the reference."""
    first = next(iter(times.values()))
    ratios = {name: [one / own for one, own in zip(first, t, strict=False)] for name, t in times.items()}
    return Comparison(
        workload,
        {name: Latency(statistics.median(t), statistics.quantiles(t, n=10)[-1], len(t)) for name, t in times.items()},
        {name: statistics.median(r) for name, r in ratios.items()},
        {name: _quartiles(r) for name, r in ratios.items()},
    )


def _milliseconds(run: Run, feeds: Feeds) -> float:
    start = time.perf_counter()
    run(feeds)
    return 1000 * (time.perf_counter() - start)


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return low, high
