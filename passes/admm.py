"""Masks by ADMM: weights that fit the layer's outputs and weights that fit the pattern, pulled together step by step.

The layer-wise problem min tr (V - W) H (V - W)^T over V in the pattern, split as in ALPS (Meng et al. 2024, arXiv
2406.07831) and Boža 2024 (arXiv 2401.02938): B fits the outputs, D is in the pattern, U sums up how far they differ:

    B = (A + rho I)^-1 (A B0 + rho (D - U)),    C = r B + (1 - r) D,    D = project(C + U),    U += C - D,

where r > 1 goes past B.

In the normalised basis B0 = (W n)^T, A = H / (n n^T), n = sqrt(diag H), magnitude is Wanda's score and rho has no
scale, so that one schedule serves every layer: rho grows geometrically over a fixed number of stages, and each stage
needs one factorization. Its length is known beforehand, and nothing in it waits for a test of convergence.

Weights are held transposed, (d, m), so that what is compared within a group lies in rows.
"""

import torch
from torch import Tensor

from compressor.passes.gram import Gram
from compressor.passes.masks import nm_keep, nth_highest, ratio_keep
from compressor.pattern import NM, Pattern

RHO = (0.05, 0.8)
"""The least first penalty and the last one, in the normalised basis, where A has a unit diagonal. Inputs of real layers
are correlated: most eigenvalues of A are far below 1, and a penalty of 1 from the start would freeze the first mask."""

GROWTH = 2.3
"""How much the penalty grows from stage to stage, at most: few stages begin later."""

STEPS = 3
"""Iterations with each factorization."""

RELAXATION = 1.5
"""How far each step goes past B, away from D (Eckstein & Bertsekas 1992): nine iterations do about what twelve did."""

SAMPLE = 1 << 14
"""Weights that tell the threshold of a ratio, between the first iteration and the last."""


def admm(W: Tensor, H: Tensor | Gram, pattern: Pattern, *, iterations: int = 24) -> tuple[Tensor, Tensor]:
    """Prune W (m, d) for inputs of damped Gram matrix H (d, d) to a pattern; returns V and keep, both (m, d).

    A ratio is ranked over the whole matrix. iterations: rounded down to a multiple of STEPS, at least one. V is the
    last iterate on its mask: near the optimum, and a good start for the refit.

    Raises IndefiniteGram if H is not positive definite.
    """
    gram = Gram.of(H)
    n = gram.norms()  # (d,)
    B0 = (W * n).T.contiguous()
    fit = gram.correlations() @ B0  # (d, m)
    stages = max(iterations // STEPS, 1)
    rhos = _penalties(stages)
    B, U, D = B0, torch.zeros_like(B0), _project(B0, pattern)
    for rho, rho_before in zip(rhos, [rhos[0], *rhos], strict=False):
        solve = gram.shifted(rho)
        U.mul_(rho_before / rho)  # U is the multiplier over rho
        for _ in range(STEPS):
            B = solve(torch.sub(D, U).mul_(rho).add_(fit))
            T = U.add_(B, alpha=RELAXATION).add_(D, alpha=1 - RELAXATION)
            D = _project(T, pattern)
            U = T.sub_(D)
    keep = _keep(B.T.contiguous(), pattern)
    return B.T * keep / n, keep


def _penalties(stages: int) -> list[float]:
    """A penalty for each stage."""
    first, last = RHO
    growth = min(GROWTH, (last / first) ** (1 / max(stages - 1, 1)))
    return [last / growth ** (stages - 1 - stage) for stage in range(stages)]


def _project(T: Tensor, pattern: Pattern) -> Tensor:
    """T (d, m) where its magnitude is among the highest, and 0 elsewhere.

    The nearest matrix in the pattern, but for two things that do not matter on the way there: of equal magnitudes at
    the threshold all stay, and a ratio's threshold is that of a sample.
    """
    size = T.abs()
    if isinstance(pattern, NM):
        groups = size.view(-1, pattern.m, T.shape[1])  # (d / M, M, m)
        is_high = torch.ge(groups, nth_highest(groups, pattern.n)[:, None], out=torch.empty_like(groups))
        return is_high.view_as(T).mul_(T)
    return torch.nn.functional.hardshrink(T, _threshold(size, pattern.sparsity))


def _threshold(size: Tensor, sparsity: float) -> float:
    """What that share of the magnitudes is not above, as far as a sample tells."""
    flat = size.flatten()
    sample = flat[:: flat.numel() // SAMPLE | 1]
    n = round(sparsity * sample.numel())
    return float(sample.kthvalue(n).values) if n else 0.0


def _keep(B: Tensor, pattern: Pattern) -> Tensor:
    """The mask of the nearest matrix in the pattern, exactly, for B (m, d)."""
    if isinstance(pattern, NM):
        return nm_keep(B.abs(), pattern.n, pattern.m)
    return ratio_keep(B.abs(), pattern.sparsity)
