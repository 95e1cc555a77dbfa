"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): prune columns left to right; later ones make up for it.

The paper removes b_j and updates all later columns with U, the upper Cholesky factor of A^-1 = U^T U:

    e_j = removed b_j / U_jj,    B[:, j:] -= e_j U[j, j:].

Over all columns this says B - V = E U for the pruned V, hence E = (B - V) R, where R = U^-1 is the upper factor of
A = R R^T. So A is factorised once and never inverted, and what columns b owe to all columns before them is one product:

    B_b + (B - V)[:, :b] R[:b, b] U_bb,    with U_bb the inverse of the small R_bb.

Two levels: blocks of columns take that product; inside a block, each group of columns is eliminated and the rest of the
block takes one low-rank update. Arrays are held transposed, (d, m), so that a column is contiguous.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.passes.masks import drop_smallest, keep_largest
from compressor.pattern import NM, Pattern

RUN = 16
"""Columns eliminated before the rest of a block is updated, where the pattern has no groups of its own."""

EXTRA_DAMPING = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""What is added to the unit diagonal, in turn, until the Cholesky factor exists; the last one is the limit."""


class IndefiniteGram(DataError, ArithmeticError):
    """A damped Gram matrix that has no Cholesky factor."""


@dataclass(frozen=True)
class Factor:
    """R: upper, A + added * I = R R^T, (d, d). added: share of the unit diagonal, 0 where A was well enough."""

    R: Tensor
    added: float


def factorise(A: Tensor) -> Factor:
    """The factor of A (d, d), damped as far as needed. Raises IndefiniteGram, an ArithmeticError, past the limit."""
    flipped = A.flip(0, 1)  # the lower factor of A with both axes reversed is the upper one of A, reversed
    for added in EXTRA_DAMPING:
        L, info = torch.linalg.cholesky_ex(flipped + added * torch.eye(len(A), dtype=A.dtype, device=A.device))
        if not info and L.diagonal().isfinite().all():
            return Factor(L.flip(0, 1), added)
    raise IndefiniteGram(
        "the Gram matrix of the inputs is not positive definite",
        found=f"no Cholesky factor for its {len(A)} channels, even with {EXTRA_DAMPING[-1]:g} times their energy added",
        hint="calibration data without NaN or infinite activations",
    )


def sparsegpt(B: Tensor, A: Tensor, pattern: Pattern, block_size: int = 128, factor: Factor | None = None) -> Tensor:
    """Prune and compensate B (m, d) for inputs of Gram matrix A (d, d), unit diagonal; dropped weights are exact zeros.

    N:M ranks each group after compensation for all before it; block_size becomes a multiple of M. A ratio ranks each
    block of block_size columns over all rows, with the same share in each and round(sparsity * m * d) in total.
    `factor` is factorise(A), for who has it already or wants to know what was added.
    Raises IndefiniteGram, an ArithmeticError; ValueError if d is not a multiple of M or a weight is not finite.
    """
    m, d = B.shape
    if isinstance(pattern, NM) and d % pattern.m:
        raise ValueError(f"cannot cut {d} columns into groups of {pattern.m}")
    if not B.isfinite().all():
        raise ValueError("a weight is not finite")
    R = (factor or factorise(A)).R
    run = pattern.m if isinstance(pattern, NM) else RUN
    block_size = max(run, block_size // run * run)
    B = B.T.contiguous()  # (d, m)
    V, D = torch.empty_like(B), torch.empty_like(B)  # pruned; B - V
    for i1 in range(0, d, block_size):
        i2 = min(i1 + block_size, d)
        U = torch.linalg.solve_triangular(R[i1:i2, i1:i2], torch.eye(i2 - i1).to(R), upper=True)
        V[i1:i2] = B[i1:i2]
        if i1:
            V[i1:i2].addmm_(U.T, R[:i1, i1:i2].T @ D[:i1])
        count = 0 if isinstance(pattern, NM) else round(pattern.sparsity * m * i2) - round(pattern.sparsity * m * i1)
        _prune_block(V[i1:i2], U, pattern, run, count)
        torch.sub(B[i1:i2], V[i1:i2], out=D[i1:i2])
    return V.T.contiguous()


def _prune_block(V: Tensor, U: Tensor, pattern: Pattern, run: int, count: int) -> None:
    """Prune V (b, m) in place for its factor U (b, b); a ratio drops `count` weights."""
    scale = U.diagonal().reciprocal()[:, None]  # (b, 1) the score is |v_j| / U_jj
    keep = None if isinstance(pattern, NM) else drop_smallest((V * scale).abs_(), count)
    for j in range(0, len(V), run):
        k = min(j + run, len(V))
        v = V[j:k]
        kept = keep_largest((v * scale[j:k]).abs_(), pattern.n) if keep is None else keep[j:k]
        E = _eliminate(v, ~kept, U[j:k, j:k], scale[j:k])
        if k < len(V):
            V[k:].addmm_(U[j:k, k:].T, E, alpha=-1)


def _eliminate(v: Tensor, dropped: Tensor, U: Tensor, scale: Tensor) -> Tensor:
    """Drop weights of a run of columns v (r, m), in place, one column after the other; returns E (r, m)."""
    E = torch.empty_like(v)
    removed = dropped * scale  # (r, m) 1 / U_jj where dropped
    for i in range(len(v)):
        torch.mul(v[i], removed[i], out=E[i])
        v[i + 1 :].addr_(U[i, i + 1 :], E[i], alpha=-1)
    v.masked_fill_(dropped, 0)
    return E
