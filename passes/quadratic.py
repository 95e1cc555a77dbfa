"""The layer-wise objective: what pruned weights V cost in place of W, and the basis in which solvers work.

For inputs of Gram matrix H (d, d) the cost is tr (V - W) H (V - W)^T, the squared change of the layer's outputs. Every
row of W is a problem of its own. Dividing channel j by n_j = sqrt(H_jj) gives every channel unit energy: in this basis
magnitude is Wanda's score (Sun et al. 2023, arXiv 2306.11695), the Jacobi preconditioner is the identity, and float32
is enough. H may be a sum or a mean over calibration rows: nothing here depends on its scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

DEAD = 1e-10
"""A channel with less than this share of the mean energy was never excited by the calibration data."""


def damping(d: int, n_rows: int) -> float:
    """The share of each channel's own energy to add: d / n_rows within [0.01, 1].

    A Gram matrix of d channels is trusted less, the fewer calibration rows it was made from.
    """
    return min(max(d / max(n_rows, 1), 0.01), 1.0)


@dataclass(frozen=True)
class Normalised:
    """A layer in the basis of unit energy; float32.

    B: W * n, (m, d).
    A: (H + lam * diag H) / (n n^T), (d, d), unit diagonal.
    n: (d,) square root of each channel's damped energy.
    """

    B: Tensor
    A: Tensor
    n: Tensor

    def back(self, V: Tensor) -> Tensor:
        """V (m, d) in the original basis. Zeros stay zeros."""
        return V / self.n


def dead_channels(H: Tensor) -> Tensor:
    """Which channels the calibration data never excited: (d,) bool."""
    energy = H.diagonal()
    return energy <= DEAD * energy.mean()


def normalise(W: Tensor, H: Tensor, lam: float) -> Normalised:
    """W (m, d) and H (d, d) in the basis of unit energy, with a share lam of each channel's own energy added.

    The added share is per channel because the mean energy is set by a few outlier channels and would drown all others.
    A dead channel says nothing about its weights, so it is uncoupled from the others and its weights stay as they are
    (n_j = 1): whoever wants them dropped sets them to zero first.
    """
    W, H = W.float(), H.float()
    dead = dead_channels(H)
    n = (H.diagonal() * (1 + lam)).sqrt().masked_fill(dead, 1)
    A = (H / n).div_(n[:, None])  # one side at a time: n_i * n_j can leave the range of float32
    A.masked_fill_(dead | dead[:, None], 0)
    A.diagonal().fill_(1)
    return Normalised(W * n, A, n)


def relative_error(V: Tensor, W: Tensor, H: Tensor) -> float:
    """tr (V - W) H (V - W)^T / tr W H W^T, a share in [0, ...); 0 for a layer without output energy."""
    W, H = W.float(), H.float()
    energy = _energy(W, H)
    return float(_energy(V.float() - W, H) / energy) if energy > 0 else 0.0


def _energy(D: Tensor, H: Tensor) -> Tensor:
    return torch.mul(D @ H, D).sum(dtype=torch.float64)  # scalar
