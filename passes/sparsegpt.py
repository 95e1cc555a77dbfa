"""SparseGPT (Frantar & Alistarh 2023): prune columns from left to right, later ones make up for it.

The paper removes w_j and updates all later columns with U, the upper Cholesky factor of H^-1 = U^T U:

    e_j = removed w_j / U_jj,    W[:, j:] -= e_j U[j, j:].

The result here is the same, reached in another order. Collected over all columns the updates say W - V = E U
for the pruned V, so that E = (W - V) R with R = U^-1, the upper factor of H = R R^T. Hence:

- H is factorized once and never inverted, a quarter of the work, and with less rounding.
- A run of columns b reads what was done before it, when its turn comes: its compensated weights are
  W_b + D_b U_bb, where D_b = (W - V)[:, :b] R[:b, b], and U_bb is the inverse of the small R_bb.
- D is gathered by halves: prune the left half of the columns, one product carries it to the right half, prune
  the right half; and each half likewise. Most of the work is then in a few large products.

Weights are held transposed, (d, m), so that a column is contiguous.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from compressor.passes.gram import Gram
from compressor.passes.masks import drop_lowest, keep_highest, n_zeros
from compressor.pattern import NM, Pattern, Ratio

RUN = 8
"""Columns eliminated one by one, where the pattern does not say."""


def sparsegpt(
    W: Tensor, H: Tensor | Gram, pattern: Pattern | None, *, keep: Tensor | None = None, block: int = 128
) -> tuple[Tensor, Tensor]:
    """Prune W (m, d) for inputs of damped Gram matrix H (d, d) to a pattern; returns V and keep, both (m, d).

    N:M groups are ranked one after the other, each after compensation for all before it. A ratio is ranked
    block by block with the same share in each, and its total is exactly round(sparsity * m * d). With `keep`
    the mask is given, the pattern is not read, and only the compensation is done.

    Raises IndefiniteGram if H is not positive definite, ValueError if d is not a multiple of M or a weight is
    not finite.
    """
    d = W.shape[1]
    if keep is not None:
        pattern = None
    elif pattern is None:
        raise ValueError("sparsegpt needs a pattern or a mask")
    if isinstance(pattern, NM) and d % pattern.m:
        raise ValueError(f"cannot cut {d} columns into groups of {pattern.m}")
    if not all(extreme.isfinite() for extreme in W.aminmax()):
        raise ValueError("a weight is not finite")
    run = pattern.m if isinstance(pattern, NM) else RUN
    sweep = _Sweep(W, Gram.of(H).upper(), pattern, keep)
    sweep.visit(_cut(0, d, max(run, block // run * run)), partial(sweep.prune_block, run))
    return sweep.V.T.contiguous(), sweep.keep.T.contiguous()


class _Sweep:
    """One sweep over the columns. All arrays are (d, m).

    V: pruned on the left of the current column, still W on its right.
    D: W - V on the left; on the right, D_b as far as it is gathered.
    """

    def __init__(self, W: Tensor, R: Tensor, pattern: Pattern | None, keep: Tensor | None):
        self.R, self.pattern = R, pattern
        self.V = W.T.clone(memory_format=torch.contiguous_format)
        self.D = torch.zeros_like(self.V)
        self.keep = torch.empty_like(self.V, dtype=torch.bool) if keep is None else keep.T.contiguous()

    def visit(self, spans: Sequence[tuple[int, int]], prune: Callable[[int, int], None]) -> None:
        """Prune consecutive spans of columns from left to right, gathering D for each before its turn."""
        if len(spans) == 1:
            prune(*spans[0])
            return
        half = 1 << (len(spans) - 1).bit_length() - 1
        (i1, _), (i2, _), (_, i3) = spans[0], spans[half], spans[-1]
        self.visit(spans[:half], prune)
        self.D[i2:i3].addmm_(self.R[i1:i2, i2:i3].T, self.D[i1:i2])
        self.visit(spans[half:], prune)

    def prune_block(self, run: int, i1: int, i2: int) -> None:
        R = self.R[i1:i2, i1:i2]  # (b, b)
        U = torch.linalg.solve_triangular(R, torch.eye(len(R), dtype=R.dtype, device=R.device), upper=True)
        weight = R.diagonal()[:, None]  # (b, 1) 1 / U_jj; the score is |w_j| / U_jj
        if isinstance(self.pattern, Ratio):
            m = self.V.shape[1]
            n = n_zeros(m * i2, self.pattern.sparsity) - n_zeros(m * i1, self.pattern.sparsity)
            w = torch.addmm(self.V[i1:i2], U.T, self.D[i1:i2])
            self.keep[i1:i2] = drop_lowest(w.mul_(weight).abs_(), n)

        def prune(j: int, k: int) -> None:
            columns = slice(j - i1, k - i1)
            self.prune_run(j, k, U[columns, columns], weight[columns])

        self.visit(_cut(i1, i2, run), prune)

    def prune_run(self, j: int, k: int, U: Tensor, weight: Tensor) -> None:
        w = torch.addmm(self.V[j:k], U.T, self.D[j:k])  # (run, m) compensated for all columns before j
        if isinstance(self.pattern, NM):
            self.keep[j:k] = keep_highest((w * weight).abs_(), self.pattern.n)
        dropped = ~self.keep[j:k]
        removed = dropped.to(w.dtype)
        U_unit = U * weight
        for i in range(k - j - 1):
            w[i + 1 :].addr_(U_unit[i, i + 1 :], w[i] * removed[i], alpha=-1)
        w.masked_fill_(dropped, 0)
        torch.sub(self.V[j:k], w, out=self.D[j:k])
        self.V[j:k] = w


def _cut(i1: int, i2: int, size: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(i1, i2, size), i2]))
