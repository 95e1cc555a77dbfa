"""Rounding of weights to a grid, so that the layer's outputs change least. Arrays only.

W (m, d) are the weights wanted, S (m, d) the scale of each, H (d, d) the damped Gram matrix of the inputs; Q (m, d)
lies on the grid: Q / S is a whole number of magnitude at most `largest`, and Q is zero wherever W is.
"""

import torch
from torch import Tensor

BLOCK = 128
RIDGE = 1e-4
"""Of the mean diagonal, what holds scales of groups without codes where they were."""


def nearest(W: Tensor, S: Tensor, largest: int) -> Tensor:
    """Each weight to the nearest point of its grid."""
    return (W / S).round().clamp(-largest, largest) * S


def solve(W: Tensor, scale: Tensor, H: Tensor, largest: int, sweeps: int, refits: int) -> tuple[Tensor, Tensor]:
    """Q, and its scale (m, n) for d / n columns each: codes by coordinate descent, and scales fitted to them, in turn.

    refits: how often scales are fitted, and codes then found anew from those there were.
    """
    size = W.shape[1] // scale.shape[1]
    S = scale.repeat_interleave(size, dim=1)
    Q = coordinate_descent(W, S, H, largest, sweeps)
    for _ in range(refits):
        C = (Q / S).round()
        scale = fitted_scales(C, W, scale, H)
        S = scale.repeat_interleave(size, dim=1)
        Q = coordinate_descent(W, S, H, largest, sweeps, start=C * S)
    return Q, scale


def coordinate_descent(
    W: Tensor, S: Tensor, H: Tensor, largest: int, sweeps: int, start: Tensor | None = None
) -> Tensor:
    """Lower tr (Q - W) H (Q - W)^T over the grid, one column after another, from rounding `start` (W) to the nearest.

    With all other columns held, the best value of column j is the point of the grid next to Q_j - (Q - W) H_j / H_jj.
    The gradient is kept up to date within blocks of columns, and for the other blocks once a block is done, so that
    a sweep costs two products with H. Zeros of W are no unknowns: they stay.
    """
    keep = W != 0
    Q = nearest(W if start is None else start, S, largest) * keep
    R = (Q - W) @ H  # (m, d) half the gradient
    for _ in range(sweeps):
        for i in range(0, W.shape[1], BLOCK):
            part = slice(i, i + BLOCK)
            moved = _descend(Q[:, part], R[:, part], keep[:, part], S[:, part], H[part, part], largest)
            R += moved @ H[part]
            Q[:, part] += moved
    return nearest(Q, S, largest) * keep  # sums of steps leave rounding errors


def fitted_scales(C: Tensor, W: Tensor, scale: Tensor, H: Tensor) -> Tensor:
    """The scales (m, n) of groups of columns with which codes C (m, d) come closest to W, in the sense of H.

    Each row is a least-squares problem of its own in its n scales. A row keeps its `scale` where the solution is no
    better, or not positive.
    """
    n = scale.shape[1]
    blocks = C.unflatten(1, (n, -1))  # (m, n, group)
    made = (c @ h for c, h in zip(blocks.unbind(1), H.chunk(n), strict=True))  # (m, d) each
    A = torch.stack([(y * C).unflatten(1, (n, -1)).sum(2) for y in made], dim=1)  # (m, n, n)
    b = ((W @ H) * C).unflatten(1, (n, -1)).sum(2)  # (m, n)
    ridge = RIDGE * A.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(A.dtype).tiny)[:, None]
    x = scale + torch.linalg.solve(A + torch.diag_embed(ridge.expand_as(scale)), b - (A @ scale[..., None])[..., 0])

    def lost(s: Tensor) -> Tensor:
        return ((A @ s[..., None])[..., 0] * s - 2 * b * s).sum(1)

    is_better = (x > 0).all(1) & torch.isfinite(x).all(1) & (lost(x) < lost(scale))
    return torch.where(is_better[:, None], x, scale)


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
