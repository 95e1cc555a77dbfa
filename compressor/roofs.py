"""What this processor can do at most on one thread: the roofs that a measured latency is held against.

Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SIZE = 512
BYTES = 1 << 26  # beyond most caches
ROUNDS = 12


@dataclass(frozen=True)
class Roofs:
    """Operations and bytes per second, each the best of a few rounds on one thread.

    flops: of a float32 matrix product. bandwidth: of copying memory, bytes read and bytes written.
    """

    flops: float
    bandwidth: float


@functools.cache
def measure_roofs() -> Roofs:
    """Measured once in a process; takes some tenths of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Roofs(2 * SIZE**3 / _best(_product()), 2 * BYTES / _best(_copy()))
    finally:
        torch.set_num_threads(threads)


def _product() -> Callable[[], object]:
    A, B, out = torch.ones(SIZE, SIZE), torch.ones(SIZE, SIZE), torch.empty(SIZE, SIZE)
    return lambda: torch.mm(A, B, out=out)


def _copy() -> Callable[[], object]:
    source, target = torch.zeros(BYTES, dtype=torch.uint8), torch.empty(BYTES, dtype=torch.uint8)
    return lambda: target.copy_(source)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest round; the first warms up."""
    work()
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent)
