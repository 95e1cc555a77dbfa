"""Grids for weights: which scale each row, or each group of a row, is rounded with. Arrays only.

All grids are symmetric, so that zero is a code and a pruned weight stays exactly zero.
"""

import torch
from torch import Tensor

SHRINKS = torch.cat([torch.linspace(1.0, 0.5, 21), torch.logspace(-0.35, -2, 14)])
"""Shares of the largest magnitude that are tried as the end of the grid. The small ones are for pruned weights: a refit
makes those of quiet inputs large, at times a hundred times as large as all others, and they matter least."""


def grid(W: Tensor, largest: int, group: int, H: Tensor | None = None) -> Tensor:
    """The scale (groups, m, n) of a symmetric grid for W (groups, m, d), n = d / group; group 0 is the whole row.

    largest: magnitude of a code. The grid ends at the share of the largest magnitude (1 to 0.01) with which rounding to
    the nearest costs least: the sum over a row's group of H_jj (W_ij - Q_ij)^2, where H (groups, d, d) is the inputs'
    Gram matrix; all inputs count alike without one. A row of zeros gets the scale 1: any would do.
    """
    blocks = W.unflatten(-1, (-1, group or W.shape[-1]))  # (groups, m, n, group)
    energy = torch.ones_like(W[:, :1]) if H is None else H.diagonal(dim1=1, dim2=2)[:, None]  # (groups, 1, d)
    energy = energy.unflatten(-1, blocks.shape[-2:])
    peak = blocks.abs().amax(-1, keepdim=True)  # (groups, m, n, 1)
    peak = torch.where(peak > 0, peak, largest)
    best, least = peak / largest, torch.full_like(peak, torch.inf)
    for shrink in SHRINKS:
        scale = shrink * peak / largest
        rounded = (blocks / scale).round_().clamp_(-largest, largest).mul_(scale)
        error = rounded.sub_(blocks).square_().mul_(energy).sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.squeeze(-1)
