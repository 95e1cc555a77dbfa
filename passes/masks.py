"""Masks from scores: which weights stay. `keep` is True where a weight stays; of equal scores the lower index stays."""

from functools import cache

import torch
from torch import Tensor

from compressor.pattern import NM, Pattern

PAIRS_UP_TO = 8
"""Longest group that is ranked by comparing all its pairs; a longer one is sorted."""


def keep_for(score: Tensor, pattern: Pattern) -> Tensor:
    """keep for a pattern: (..., d) -> (..., d) bool. Raises ValueError as keep_nm and keep_ratio do."""
    if isinstance(pattern, NM):
        return keep_nm(score, pattern.n, pattern.m)
    return keep_ratio(score, pattern.sparsity)


def keep_nm(score: Tensor, n: int, m: int) -> Tensor:
    """Keep exactly the n largest of each m consecutive scores along the last axis: (..., d) -> (..., d) bool.

    Raises ValueError if d is not a multiple of m, or a score is NaN.
    """
    _refuse_nan(score)
    groups = _groups(score, n, m)  # (G, m)
    return keep_largest(groups.T.contiguous(), n).T.reshape(score.shape)


def keep_largest(score: Tensor, n: int) -> Tensor:
    """Keep exactly the n largest along the first axis: (m, R) -> (m, R) bool. NaN is not looked for."""
    m = len(score)
    if m > PAIRS_UP_TO:
        order = score.sort(0, descending=True, stable=True).indices
        return torch.zeros_like(score, dtype=torch.bool).scatter_(0, order[:n], True)
    first, second, signs, start = _pairs(m, score.device)
    # A weight's rank is how many of its group beat it. Of a pair that is equal, the first one wins.
    second_wins = score.index_select(0, second) > score.index_select(0, first)  # (pairs, R)
    return torch.addmm(start, signs, second_wins.float()) < n


@cache
def _pairs(m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs first < second; what each adds to the ranks if the second wins (m, pairs); the ranks if none does."""
    first, second = torch.triu_indices(m, m, 1)
    member = torch.arange(m)[:, None]
    signs = (member == first).float() - (member == second).float()
    return first.to(device), second.to(device), signs.to(device), member.float().to(device)


def keep_ratio(score: Tensor, sparsity: float) -> Tensor:
    """Drop exactly round(sparsity * numel) scores, the smallest of the whole array. Raises ValueError on NaN."""
    _refuse_nan(score)
    return drop_smallest(score, round(sparsity * score.numel()))


def drop_smallest(score: Tensor, count: int) -> Tensor:
    """keep, with exactly `count` of the whole array dropped; same shape, bool. NaN is not looked for."""
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    flat = score.flatten()
    threshold = flat.kthvalue(count).values
    above, equal = flat > threshold, flat == threshold
    # Counting along the ties instead of indexing them keeps a GPU from waiting for the CPU.
    spare = flat.numel() - count - above.sum()
    return (above | equal & (equal.cumsum(0) <= spare)).view(score.shape)


def holds(W: Tensor, n: int, m: int) -> bool:
    """Whether at most n of each m consecutive weights along the last axis are non-zero.

    Raises ValueError if that axis is not a multiple of m.
    """
    return bool((_groups(W, n, m).count_nonzero(-1) <= n).all())


def _groups(values: Tensor, n: int, m: int) -> Tensor:
    if not 0 < n < m:
        raise ValueError(f"cannot keep {n} of every {m}")
    if values.shape[-1] % m:
        raise ValueError(f"cannot cut an axis of length {values.shape[-1]} into groups of {m}")
    return values.reshape(-1, m)


def _refuse_nan(score: Tensor) -> None:
    if score.isnan().any():
        raise ValueError(f"{int(score.isnan().sum())} of {score.numel()} scores are NaN and cannot be ranked")
