"""What this processor can do at most on one thread: the roofs that a measured latency is held against.

Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SIZE = 256
BYTES = 1 << 26  # beyond most caches
SLICES = 32
ROUNDS = 3 * SLICES


@dataclass(frozen=True)
class Roofs:
    """Operations and bytes per second, each the best of a few rounds on one thread.

    flops: of a float32 matrix product. bandwidth: of copying memory, bytes read and bytes written.
    """

    flops: float
    bandwidth: float


@functools.cache
def measure_roofs() -> Roofs:
    """Measured once in a process; takes some tenths of a second.

    Many short rounds: whoever shares the processor interrupts a long one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Roofs(2 * SIZE**3 / _best(_product()), 2 * BYTES / SLICES / _best(_copy()))
    finally:
        torch.set_num_threads(threads)


def _product() -> Callable[[int], object]:
    A, B, out = torch.ones(SIZE, SIZE), torch.ones(SIZE, SIZE), torch.empty(SIZE, SIZE)
    return lambda round_: torch.mm(A, B, out=out)


def _copy() -> Callable[[int], object]:
    """A slice of a large tensor each round: by the time it comes again, it is out of the caches."""
    source, target = (torch.zeros(SLICES, BYTES // SLICES, dtype=torch.uint8) for _ in range(2))
    return lambda round_: target[round_ % SLICES].copy_(source[round_ % SLICES])


def _best(work: Callable[[int], object]) -> float:
    """Seconds of the fastest round; the first ones, which touch memory for the first time, do not count."""
    for round_ in range(SLICES):
        work(round_)
    spent = []
    for round_ in range(ROUNDS):
        start = time.perf_counter()
        work(round_)
        spent.append(time.perf_counter() - start)
    return min(spent)
