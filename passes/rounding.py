"""Rounding of weights to a grid, so that the layer's outputs change least. Arrays only.

W (m, d) are the weights wanted, S (m, d) the scale of each, H (d, d) the damped Gram matrix of the inputs; Q (m, d)
lies on the grid: Q / S is a whole number of magnitude at most `largest`, and Q is zero wherever W is.
"""

import torch
from torch import Tensor

BLOCK = 128


def nearest(W: Tensor, S: Tensor, largest: int) -> Tensor:
    """Each weight to the nearest point of its grid."""
    return (W / S).round().clamp(-largest, largest) * S


def coordinate_descent(W: Tensor, S: Tensor, H: Tensor, largest: int, sweeps: int) -> Tensor:
    """Lower tr (Q - W) H (Q - W)^T over the grid, one column after another, from rounding to the nearest.

    With all other columns held, the best value of column j is the point of the grid next to Q_j - (Q - W) H_j / H_jj.
    The gradient is kept up to date within blocks of columns, and for the other blocks once a block is done, so that
    a sweep costs two products with H. Zeros of W are no unknowns: they stay.
    """
    Q, keep = nearest(W, S, largest), W != 0
    R = (Q - W) @ H  # (m, d) half the gradient
    for _ in range(sweeps):
        for i in range(0, W.shape[1], BLOCK):
            part = slice(i, i + BLOCK)
            moved = _descend(Q[:, part], R[:, part], keep[:, part], S[:, part], H[part, part], largest)
            R += moved @ H[part]
            Q[:, part] += moved
    return nearest(Q, S, largest) * keep  # sums of steps leave rounding errors


def _descend(Q: Tensor, R: Tensor, keep: Tensor, S: Tensor, H: Tensor, largest: int) -> Tensor:
    """What one pass over the columns of a block (m, b) adds to Q."""
    now, R = Q.T.contiguous(), R.T.clone(memory_format=torch.contiguous_format)  # (b, m): a column is contiguous
    S, keep = S.T.contiguous(), keep.T.contiguous()
    moved = torch.zeros_like(now)
    for j in range(len(now)):
        wanted = now[j] - R[j] / H[j, j]
        moved[j] = ((wanted / S[j]).round_().clamp_(-largest, largest) * S[j] - now[j]) * keep[j]
        R.addr_(H[j], moved[j])
    return moved.T
