"""Methods by name: each prunes one matrix to a pattern, for inputs of a damped Gram matrix. Arrays only.

All take W (m, d), H (d, d) damped, alone or as a Gram with its factors, and a pattern, and return V and keep, both
(m, d), V zero outside keep.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from compressor.passes.admm import admm
from compressor.passes.gram import Gram
from compressor.passes.masks import nm_keep, ratio_keep, row_ratio_keep
from compressor.passes.sparsegpt import sparsegpt
from compressor.pattern import NM, Pattern

Method = Callable[..., tuple[Tensor, Tensor]]


def by_magnitude(W: Tensor, H: Tensor | Gram | None, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The largest |W| stay; a ratio is ranked over the whole matrix. H is not read."""
    score = W.abs()
    keep = nm_keep(score, pattern.n, pattern.m) if isinstance(pattern, NM) else ratio_keep(score, pattern.sparsity)
    return W * keep, keep


def by_wanda(W: Tensor, H: Tensor | Gram, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The largest |W_ij| * ||X_j|| stay; the root mean square of X_j is sqrt(H_jj) (Sun et al. 2023, eq. 1).

    A ratio is ranked within each row, as the paper finds best (section 3). Damping by a share of each channel's own
    energy scales all scores alike.
    """
    score = W.abs() * Gram.of(H).norms()  # (m, d)
    keep = nm_keep(score, pattern.n, pattern.m) if isinstance(pattern, NM) else row_ratio_keep(score, pattern.sparsity)
    return W * keep, keep


def is_admm_cheap(m: int, d: int, iterations: int) -> bool:
    """Whether ADMM costs no more than SparseGPT in its plain form, column by column, does for weights (m, d).

    In multiplications and additions, by what was measured (benchmarks/solver.md): a column of the plain form costs as
    much as 7e6 of a matrix product's, and 17e3 more per row; its three factorizations, 4/3 d^3.
    """
    plain = d * (7e6 + 17e3 * m) + 4 / 3 * d**3
    return iterations * (2 * m * d**2 + d**3 / 9) <= plain


def by_admm_or_sparsegpt(W: Tensor, H: Tensor | Gram, pattern: Pattern, *, iterations: int) -> tuple[Tensor, Tensor]:
    """ADMM where its price is that of a plain SparseGPT, else SparseGPT: chosen by shape alone, never by a clock."""
    m, d = W.shape
    if is_admm_cheap(m, d, iterations):
        return admm(W, H, pattern, iterations=iterations)
    return sparsegpt(W, H, pattern)


def method_of(name: str, iterations: int) -> Method:
    """The method of a name; those that iterate take that many iterations. Raises KeyError."""
    method = METHODS[name]
    return partial(method, iterations=iterations) if name in ITERATED else method


METHODS: dict[str, Method] = {
    "magnitude": by_magnitude,
    "wanda": by_wanda,
    "sparsegpt": sparsegpt,
    "admm": admm,
    "auto": by_admm_or_sparsegpt,
}
ITERATED = ("admm", "auto")
