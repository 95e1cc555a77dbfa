"""Methods by name: each prunes one matrix to a pattern, for inputs of a damped Gram matrix. Arrays only.

All take W (m, d), H (d, d) damped and a pattern, and return V and keep, both (m, d), V zero outside keep.
"""

from collections.abc import Callable

from torch import Tensor

from compressor.passes.admm import admm
from compressor.passes.masks import nm_keep, ratio_keep, row_ratio_keep
from compressor.passes.sparsegpt import sparsegpt
from compressor.pattern import NM, Pattern

Method = Callable[[Tensor, Tensor, Pattern], tuple[Tensor, Tensor]]


def by_magnitude(W: Tensor, H: Tensor | None, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The largest |W| stay; a ratio is ranked over the whole matrix. H is not read."""
    score = W.abs()
    keep = nm_keep(score, pattern.n, pattern.m) if isinstance(pattern, NM) else ratio_keep(score, pattern.sparsity)
    return W * keep, keep


def by_wanda(W: Tensor, H: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The largest |W_ij| * ||X_j|| stay; the root mean square of X_j is sqrt(H_jj) (Sun et al. 2023, eq. 1).

    A ratio is ranked within each row, as the paper finds best (section 3). Damping by a share of each channel's own
    energy scales all scores alike.
    """
    score = W.abs() * H.diagonal().sqrt()  # (m, d)
    keep = nm_keep(score, pattern.n, pattern.m) if isinstance(pattern, NM) else row_ratio_keep(score, pattern.sparsity)
    return W * keep, keep


METHODS: dict[str, Method] = {
    "magnitude": by_magnitude,
    "wanda": by_wanda,
    "sparsegpt": sparsegpt,
    "admm": admm,
}
