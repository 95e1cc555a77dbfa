"""Parity: the same weights in two runtimes on the same inputs."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.graph import Feeds, Run

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference, relative to the largest value of the reference output. A forward pass sums over hundreds of
values some dozens of times, so each is about a hundred times the rounding of one operation (1e-6, 1e-3, 1e-2), less
for half precision, whose kernels sum in single."""

ROUNDED = 5e-2
"""The least that is allowed where activations are rounded to 8 bits. A value between two codes may fall either way: one
code is 1/255 of the activation's range, and every later rounding can carry it on."""


def tolerance(run: Run, workloads: Iterable[Feeds], dtype: str, unrounded: Run | None = None) -> float:
    """How far another runtime may be from a run.

    unrounded: the same without the rounding of activations, where it rounds them. In a deep model the codes of later
        layers have nothing to do with each other once one of them has fallen the other way. Then each of two runtimes
        is as far from what neither rounds as all of this rounding changes, and they from each other twice as far.
    """
    if unrounded is None:
        return TOLERANCE[dtype]
    changed = max(difference(unrounded, run, feeds) for feeds in workloads)
    return max(ROUNDED, 2 * changed)


@dataclass(frozen=True)
class Parity:
    """How far a runtime is from torch, and how far it may be.

    difference: largest over outputs and inputs, relative to the output's largest value.
    same_tokens: whether greedy generation gives identical tokens (None where the task has none).
    tokens: how many were compared.
    tokens_decide: whether other tokens are a failure; in half precision, and where
        activations are rounded, a near tie may fall either way.
    """

    difference: float
    tolerance: float
    workloads: tuple[str, ...]
    same_tokens: bool | None = None
    tokens: int = 0
    tokens_decide: bool = True

    def __bool__(self) -> bool:
        is_same = self.same_tokens is not False or not self.tokens_decide
        return self.difference <= self.tolerance and is_same


def in_words(difference: float, allowed: float) -> str:
    """`largest relative difference 2.1e-06 (allowed 1e-04)`."""
    return f"largest relative difference {difference:.1e} (allowed {f'{allowed:.1e}'.replace('.0e', 'e')})"


def difference(reference: Run, other: Run, feeds: Feeds, names: Iterable[str] = ()) -> float:
    """Largest relative difference over the named outputs of one call, or all; infinite when only one has NaN."""
    expected, found = reference(feeds), other(feeds)
    return max(_relative(expected[name], found[name]) for name in names or expected)


def _relative(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    expected, found = expected.double(), found.double()
    differ = (expected != found) & ~(expected.isnan() & found.isnan())
    if not differ.any():
        return 0.0
    largest = expected.nan_to_num(0, 0, 0).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    gap = (expected - found)[differ].abs().max() / largest
    return float("inf") if gap.isnan() else gap.item()
