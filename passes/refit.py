"""Refit: the kept weights, moved to the least-squares optimum of their mask by conjugate gradients.

Source: PCG on a mask, ALPS (Meng et al. 2024, arXiv 2406.07831), Alg. 2. In the normalised basis A has unit diagonal,
so the Jacobi preconditioner is the identity. Step sizes are per row rather than per matrix, because rows are
independent problems; and the residual is carried along, so that an iteration is one product with A.
"""

import torch
from torch import Tensor


def refit(V: Tensor, keep: Tensor, B: Tensor, A: Tensor, iterations: int) -> Tensor:
    """Lower tr (V - B) A (V - B)^T over the kept weights, from V: all (m, d), A (d, d) unit diagonal -> (m, d).

    Weights outside `keep` are exactly zero in the result. A is positive semidefinite. No row ends above where it
    started.
    """
    V = V * keep  # (m, d)
    R = torch.mul((B - V) @ A, keep)  # (m, d) half the descent direction
    P, rr = R.clone(), _dot(R, R)  # (m, d), (m, 1)
    AP = torch.empty_like(V)
    for _ in range(iterations):
        torch.matmul(P, A, out=AP).mul_(keep)
        step = _ratio(rr, _dot(P, AP))
        V.addcmul_(step, P)
        R.addcmul_(step, AP, value=-1)
        rr, rr_before = _dot(R, R), rr
        P.mul_(_ratio(rr, rr_before)).add_(R)
    return V


def _dot(X: Tensor, Y: Tensor) -> Tensor:
    return torch.linalg.vecdot(X, Y).unsqueeze(1)  # (m, 1)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 0)  # a row that has converged stands still
