"""Masks from scores: the higher is kept, of equal ones the lower index. `keep` is True where a weight stays."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

IN_CACHE = 1 << 14
"""Groups ranked at a time."""


def nm_keep(score: Tensor, n: int, m: int) -> Tensor:
    """Keep the n highest of every m consecutive scores along the last axis: (..., d) -> (..., d) bool.

    Raises ValueError if d is not a multiple of m, or a score is NaN.
    """
    _check(score)
    groups = _groups(score, n, m)  # (G, m)
    keeps = [keep_highest(part.T.contiguous(), n).T for part in torch.split(groups, IN_CACHE)]
    return torch.cat(keeps).reshape(score.shape) if keeps else groups.bool().reshape(score.shape)


def keep_highest(score: Tensor, n: int) -> Tensor:
    """Keep the n highest along the first, short axis: (m, R) -> (m, R) bool. Scores are not checked for NaN.

    Ranks by comparing all pairs, which for a short axis is several times faster than sorting. Of two equal
    scores the first ranks higher.
    """
    first, second, signs, rank = _pairs(len(score), score.device)
    is_beaten = (score.index_select(0, second) > score.index_select(0, first)).float()  # (pairs, R)
    return torch.addmm(rank, signs, is_beaten) < n


@cache
def _pairs(m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs first < second of m, what it adds to each rank if the second wins, and the ranks if none does."""
    first, second = torch.triu_indices(m, m, 1)
    signs = torch.zeros(m, len(first))
    signs[first, torch.arange(len(first))] = 1
    signs[second, torch.arange(len(first))] = -1
    rank = torch.arange(m, dtype=torch.float32)[:, None]
    return first.to(device), second.to(device), signs.to(device), rank.to(device)


def nth_highest(x: Tensor, n: int) -> Tensor:
    """The n-th highest along a short axis: (G, m, R) -> (G, R)."""
    highest: list[Tensor] = []
    for one in x.unbind(1):
        for place, other in enumerate(highest):
            highest[place], one = torch.maximum(other, one), torch.minimum(other, one)
        if len(highest) < n:
            highest.append(one)
    return highest[-1]


def ratio_keep(score: Tensor, sparsity: float) -> Tensor:
    """Drop exactly round(sparsity * numel) of the scores, the lowest, anywhere in the tensor.

    Raises ValueError if a score is NaN.
    """
    return drop_lowest(score, n_zeros(score.numel(), sparsity))


def row_ratio_keep(score: Tensor, sparsity: float) -> Tensor:
    """Drop exactly round(sparsity * d) of each row's scores, the lowest: (..., d) -> (..., d) bool.

    Raises ValueError if a score is NaN.
    """
    _check(score)
    n_kept = score.shape[-1] - n_zeros(score.shape[-1], sparsity)
    order = score.argsort(dim=-1, descending=True, stable=True)  # (..., d)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order[..., :n_kept], True)


def global_ratio_keep(scores: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """`ratio_keep` over the union of several tensors: the count is exact for all together, not for each.

    Raises ValueError if a score is NaN.
    """
    if not scores:
        return []
    keep = ratio_keep(torch.cat([score.flatten() for score in scores]), sparsity)
    parts = torch.split(keep, [score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def drop_lowest(score: Tensor, n: int) -> Tensor:
    """Drop exactly the n lowest scores, of equal ones the higher index. Raises ValueError if a score is NaN."""
    _check(score)
    if n == 0:
        return torch.ones_like(score, dtype=torch.bool)
    flat = score.flatten()
    threshold = flat.kthvalue(n).values
    keep = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    keep[ties[: flat.numel() - n - int(keep.sum())]] = True
    return keep.view(score.shape)


def n_zeros(numel: int, sparsity: float) -> int:
    """How many of numel weights a ratio makes zero."""
    return round(sparsity * numel)


def nm_fraction(W: Tensor, n: int, m: int) -> tuple[int, int]:
    """(groups with at most n non-zero, groups), over every m consecutive weights along the last axis.

    Raises ValueError if that axis is not a multiple of m.
    """
    groups = _groups(W, n, m)
    return int((groups.count_nonzero(1) <= n).sum()), len(groups)


def _groups(values: Tensor, n: int, m: int) -> Tensor:
    d = values.shape[-1]
    if not 0 < n <= m:
        raise ValueError(f"cannot keep {n} of every {m}")
    if d % m:
        raise ValueError(f"cannot cut an axis of length {d} into groups of {m}")
    return values.reshape(-1, m)


def _check(score: Tensor) -> None:
    if score.isnan().any():
        raise ValueError(f"a score is NaN: {int(score.isnan().sum())} of {score.numel()} cannot be ranked")
