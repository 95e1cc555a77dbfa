"""What the inputs of one weight look like, summed up row by row. Arrays only."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

GRAM_BLOCK = 256
"""Rows of a Gram matrix computed at a time, each from its diagonal on: half the work of the whole square."""


@dataclass
class Moments:
    """Mean and variance of each channel (axis 1) of values (batch, C, ...) that come batch by batch; float64."""

    n: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Add values (batch, C, ...)."""
        x = x.double().movedim(1, 0).flatten(1)  # (C, n)
        self.n += x.shape[1]
        self.total = self.total + x.sum(1)
        self.squares = self.squares + x.square().sum(1)

    def mean(self) -> Tensor:
        """(C,)"""
        return torch.as_tensor(self.total) / max(self.n, 1)

    def variance(self) -> Tensor:
        """(C,), of all values: divided by their number."""
        return (torch.as_tensor(self.squares) / max(self.n, 1) - self.mean().square()).clamp_min(0)


@dataclass
class Statistics:
    """Sums over n rows x of one site's inputs, all float32.

    H: the upper triangle of X^T X (groups, d, d). total: the sum of the rows (groups, d).
    G: Z^T X (groups, d, d), where Z are the rows that the dense model sees in place of X, with their sum total_dense;
        None where the dense model is not run beside.
    """

    H: Tensor
    G: Tensor | None = None
    n: int = 0
    total: Tensor = field(init=False)
    total_dense: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros_like(self.H[..., 0])
        self.total_dense = torch.zeros_like(self.total)

    def add(self, X: Tensor, Z: Tensor | None = None) -> None:
        """Add rows X (groups, n, d), and Z alike where there is a G."""
        X = X.float()
        for H, X_group in zip(self.H, X, strict=True):
            for i in range(0, len(H), GRAM_BLOCK):
                j = i + GRAM_BLOCK
                H[i:j, i:].addmm_(X_group[:, i:j].T, X_group[:, i:])  # (block, d - i)
        self.total += X.sum(1)
        self.n += X.shape[1]
        if self.G is not None and Z is not None:
            self.G.baddbmm_(Z.float().mT, X)
            self.total_dense += Z.float().sum(1)

    def gram(self) -> Tensor:
        """X^T X / n as (groups, d, d)."""
        upper = self.H.triu()
        return (upper + upper.triu(1).mT).div_(max(self.n, 1))

    def cross(self) -> Tensor:
        """Z^T X / n as (groups, d, d)."""
        assert self.G is not None
        return self.G / max(self.n, 1)

    def mean(self) -> Tensor:
        """The mean row of X (groups, d)."""
        return self.total / max(self.n, 1)

    def mean_dense(self) -> Tensor:
        """The mean row of Z (groups, d)."""
        return self.total_dense / max(self.n, 1)
