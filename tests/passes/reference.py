"""What the solvers are checked against: the paper's algorithm as printed, and exhaustive or exact answers."""

from itertools import combinations

import torch
from torch import Tensor

from compressor.pattern import NM, Pattern, Ratio


def plain_sparsegpt(W: Tensor, H: Tensor, pattern: Pattern, block: int = 128) -> tuple[Tensor, Tensor]:
    """SparseGPT as printed: column after column, the columns behind a block of 128 updated once per block.

    W (m, d), H (d, d) damped. Returns V and keep, both (m, d).
    """
    V, keep, _ = plain_columns(W, factor_of_inverse(H), pattern, block=block)
    return V, keep


def factor_of_inverse(H: Tensor) -> Tensor:
    """The upper U of H^-1 = U^T U."""
    U: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    return U


def plain_columns(
    W: Tensor, U: Tensor, pattern: Pattern, keep: Tensor | None = None, block: int = 128
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop over columns, for a given factor; also returns each weight's score when it was ranked.

    With `keep` the mask is given, and the scores tell what there was to choose from.
    """
    W = W.clone()
    m, d = W.shape
    if isinstance(pattern, NM):
        block = block // pattern.m * pattern.m
    mask = torch.ones(m, d, dtype=torch.bool) if keep is None else keep
    scores = torch.empty_like(W)
    for i1 in range(0, d, block):
        i2 = min(i1 + block, d)
        W1, U1, mask1, E = W[:, i1:i2], U[i1:i2, i1:i2], mask[:, i1:i2], torch.zeros_like(W[:, i1:i2])
        if isinstance(pattern, Ratio):
            scores[:, i1:i2] = W1**2 / U1.diagonal() ** 2
            if keep is None:
                zeros = round(pattern.sparsity * m * i2) - round(pattern.sparsity * m * i1)
                order = scores[:, i1:i2].flatten().argsort(stable=True, descending=True)
                lowest = order[m * (i2 - i1) - zeros :]
                mask1[lowest // (i2 - i1), lowest % (i2 - i1)] = False
        for j in range(i2 - i1):
            if isinstance(pattern, NM) and j % pattern.m == 0:
                group = slice(j, j + pattern.m)
                score = W1[:, group] ** 2 / U1.diagonal()[group] ** 2
                scores[:, i1:i2][:, group] = score
                if keep is None:
                    lowest = score.topk(pattern.m - pattern.n, dim=1, largest=False).indices
                    mask1[:, group] = mask1[:, group].scatter(1, lowest, False)
            w = W1[:, j]
            v = w * mask1[:, j]
            e = (w - v) / U1[j, j]
            E[:, j] = e
            W1[:, j:] -= e[:, None] * U1[j, j:]
            W1[:, j] = v
        W[:, i2:] -= E @ U[i1:i2, i2:]
    return W, mask, scores


def worst_choice(W: Tensor, H: Tensor, pattern: Pattern, keep: Tensor) -> float:
    """How far a mask ever departs from the paper's rule, followed in float64.

    0 if never; 0.01 if some weight was dropped that scored 1 % above one that was kept in its place.
    """
    W, H = W.double(), H.double()
    _, _, scores = plain_columns(W, factor_of_inverse(H), pattern, keep)
    scores = scores.sqrt()
    if isinstance(pattern, NM):
        parts = [(scores.reshape(-1, pattern.m), keep.reshape(-1, pattern.m))]
    else:
        blocks = zip(torch.split(scores, 128, 1), torch.split(keep, 128, 1), strict=True)
        parts = [(s.reshape(1, -1), k.reshape(1, -1)) for s, k in blocks]
    worst = 0.0
    for s, k in parts:
        kept = s.masked_fill(~k, torch.inf).amin(1)
        dropped = s.masked_fill(k, 0).amax(1)
        worst = max(worst, float(((dropped - kept) / dropped.clamp_min(1e-300)).max()))
    return worst


def least_squares(W: Tensor, H: Tensor, keep: Tensor) -> Tensor:
    """The exact minimum of tr (V - W) H (V - W)^T on a mask, row by row, in float64."""
    W, H = W.double(), H.double()
    V = torch.zeros_like(W)
    for row, (w, kept) in enumerate(zip(W, keep, strict=True)):
        V[row, kept] = torch.linalg.solve(H[kept][:, kept], (H @ w)[kept])
    return V


def all_keeps(n: int, m: int) -> Tensor:
    """Every way to keep n of m: (ways, m) bool."""
    ways = list(combinations(range(m), n))
    keep = torch.zeros(len(ways), m, dtype=torch.bool)
    keep[torch.arange(len(ways))[:, None], torch.tensor(ways)] = True
    return keep


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(m: int, d: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights W (m, d) and inputs X (n, d) like a trained layer's: correlated channels, a few outliers."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    spectrum = torch.arange(1, d + 1) ** -0.5
    X = torch.randn(n, d, generator=g) * (spectrum / spectrum.square().mean().sqrt()) @ basis.T
    scale = (0.5 * torch.randn(d, generator=g)).exp()
    scale[torch.randperm(d, generator=g)[: max(2, d // 128)]] *= 8
    W = torch.randn(m, d, generator=g) * (0.3 * torch.randn(m, 1, generator=g)).exp()
    W *= (0.3 * torch.randn(d, generator=g)).exp()
    W *= 1 + 0.5 * torch.randn(m, d, generator=g).abs()
    return W, X * scale
