"""Weights and the offset of their outputs (a bias), refitted together. Arrays only.

Least squares over both is least squares over the weights alone after a channel of ones is appended to the inputs,
which no mask drops: H1 = [[H, x], [x^T, 1]] for mean inputs x. Whatever the mask, the ones can be eliminated first.
What is left for the weights is the Schur complement H - x x^T; the offset then moves by what the weights have changed
the mean output by.
"""

import torch
from torch import Tensor

ROUNDING = 1e-5
"""A channel whose variance is a smaller share of its energy is constant as far as float32 sums can tell."""


def centre(H: Tensor, x: Tensor) -> Tensor:
    """H - x x^T for mean Gram matrices H (groups, d, d) and mean inputs x (groups, d); constant channels are zero."""
    C = centre_cross(H, x, x)
    constant = C.diagonal(dim1=1, dim2=2) <= ROUNDING * H.diagonal(dim1=1, dim2=2)  # (groups, d)
    return C.masked_fill_(constant[:, :, None] | constant[:, None, :], 0)


def centre_cross(G: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """G - z x^T for mean cross-Gram matrices G = Z^T X (groups, d, d) of inputs with means z and x (groups, d)."""
    return G - z[:, :, None] * x[:, None, :]


def mean_output(W: Tensor, x: Tensor) -> Tensor:
    """W x for weights (groups, m, d) and mean inputs (groups, d): (groups, m)."""
    return torch.einsum("gmd,gd->gm", W, x)
