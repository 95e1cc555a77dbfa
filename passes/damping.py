"""Damping of a Gram matrix: how far calibration is trusted, channel by channel."""

import torch
from torch import Tensor

DEAD = 1e-10
"""A channel whose energy is below this share of the mean one was never excited by the calibration data."""


def dampen(H: Tensor, lam: float) -> Tensor:
    """H + lam * diag(H), positive definite for lam > 0; H (d, d) is left as it was.

    The damping is a share of each channel's own energy. A share of the mean energy would be set by a few
    outlier channels and drown all others. A dead channel says nothing about its weights: it is uncoupled, with
    the least energy that counts as alive, so that its weights are the first to go.
    """
    energy = H.diagonal()  # (d,)
    least = DEAD * energy.mean()
    dead = is_dead(H)
    damped = H.masked_fill(dead | dead[:, None], 0)
    damped.diagonal().copy_(torch.where(dead, least if least > 0 else 1, energy * (1 + lam)))
    return damped


def is_dead(H: Tensor) -> Tensor:
    """Which channels of H (d, d) the data never excited: (d,) bool."""
    energy = H.diagonal()
    return energy <= DEAD * energy.mean()


def choose_lambda(d: int, n_tokens: int) -> float:
    """d / n_tokens within [0.01, 1]: a Gram matrix of d channels is trusted less, the fewer rows it is from."""
    return min(max(d / max(n_tokens, 1), 0.01), 1.0)
