"""Calls timed against each other by two clocks: the wall's, and that of the thread, which other work does not stop."""

import time
from collections.abc import Callable, Mapping

import numpy as np

WARM_UP = 3
Times = tuple[np.ndarray, np.ndarray]  # milliseconds of the wall and of the thread: (rounds,) each


def clocked(
    runs: Mapping[str, Callable[[], object]], seconds: float, rounds: tuple[int, int] = (10, 200)
) -> dict[str, Times]:
    """Each run once a round, first from first to last, then from last to first. A run computes on its caller's thread.

    seconds: about how long to measure. rounds: least and most.
    """
    for _ in range(WARM_UP):
        once = sum(_once(run)[0] for run in runs.values())
    n = max(rounds[0], min(rounds[1], int(1000 * seconds / once)))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for at in range(n):
        for name in list(runs) if at % 2 == 0 else reversed(runs):
            found[name].append(_once(runs[name]))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in found.items()}


def faster(reference: np.ndarray, other: np.ndarray) -> str:
    """How many times: the median over rounds, and its quartiles."""
    low, middle, high = np.percentile(reference / other, [25, 50, 75])
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"


def _once(run: Callable[[], object]) -> tuple[float, float]:
    wall, thread = time.perf_counter(), time.thread_time()
    run()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.thread_time() - thread)
