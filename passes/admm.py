"""Masks by ADMM: weights that fit the layer's outputs and weights that fit the pattern, pulled together step by step.

The layer-wise problem min tr (V - W) H (V - W)^T over V in the pattern, split as in ALPS (Meng et al. 2024, arXiv
2406.07831) and Boža 2024 (arXiv 2401.02938): B fits the outputs, D is in the pattern, U sums up how far they differ:

    B = (B0 A + rho (D - U)) (A + rho I)^-1,    D = project(B + U),    U += B - D.

In the normalised basis B0 = W n, A = H / (n n^T), n = sqrt(diag H), magnitude is Wanda's score and rho has no scale, so
that one schedule serves every layer: rho grows geometrically over a fixed number of stages, and each stage needs one
factorization. Its length is known beforehand, and nothing in it waits for a test of convergence.
"""

import torch
from torch import Tensor

from compressor.passes.masks import nm_keep, ratio_keep
from compressor.passes.sparsegpt import IndefiniteGram
from compressor.pattern import NM, Pattern

RHO = (0.3, 3.0)
"""First and last penalty, in the normalised basis, where A has a unit diagonal."""


def admm(W: Tensor, H: Tensor, pattern: Pattern, *, stages: int = 8, steps: int = 3) -> tuple[Tensor, Tensor]:
    """Prune W (m, d) for inputs of damped Gram matrix H (d, d) to a pattern; returns V and keep, both (m, d).

    stages, steps: factorizations, and iterations with each. A ratio is ranked over the whole matrix. V is the last
    iterate on its mask: near the optimum, and a good start for the refit.

    Raises IndefiniteGram if H is not positive definite.
    """
    n = H.diagonal().sqrt()  # (d,)
    A, B0 = H / torch.outer(n, n), W * n
    fit = B0 @ A  # (m, d)
    D, U = B0 * _keep(B0, pattern), torch.zeros_like(B0)
    B, rho_before = B0, RHO[0]
    for stage in range(stages):
        rho = RHO[0] * (RHO[1] / RHO[0]) ** (stage / max(stages - 1, 1))
        inverse = _inverse(A, rho)
        U.mul_(rho_before / rho)  # U is the multiplier over rho
        for _ in range(steps):
            B = (fit + rho * (D - U)) @ inverse
            T = B + U
            D = T * _keep(T, pattern)
            U = T - D
        rho_before = rho
    keep = _keep(B, pattern)
    return B * keep / n, keep


def _keep(T: Tensor, pattern: Pattern) -> Tensor:
    """The mask of the nearest matrix in the pattern: the projection keeps the largest magnitudes."""
    if isinstance(pattern, NM):
        return nm_keep(T.abs(), pattern.n, pattern.m)
    return ratio_keep(T.abs(), pattern.sparsity)


def _inverse(A: Tensor, rho: float) -> Tensor:
    """(A + rho I)^-1."""
    shifted = A.clone()
    shifted.diagonal().add_(rho)
    L, info = torch.linalg.cholesky_ex(shifted)
    if info:
        raise IndefiniteGram(
            "the damped Gram matrix of the inputs is not positive definite",
            found=f"no Cholesky factor for its {len(A)} channels",
            hint="a larger damping, for example --damping 0.1, or more calibration samples",
        )
    return torch.cholesky_inverse(L)
