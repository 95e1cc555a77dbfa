"""What the inputs of one weight look like, summed up row by row. Arrays only."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

GRAM_BLOCK = 256
"""Rows of a Gram matrix computed at a time, each from its diagonal on: half the work of the whole square."""


@dataclass
class Statistics:
    """Sums over n rows x of one site's inputs, all float32.

    H: the upper triangle of X^T X (groups, d, d). total: the sum of the rows (groups, d).
    """

    H: Tensor
    n: int = 0
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros_like(self.H[..., 0])

    def add(self, X: Tensor) -> None:
        """Add rows X (groups, n, d)."""
        X = X.float()
        for H, X_group in zip(self.H, X, strict=True):
            for i in range(0, len(H), GRAM_BLOCK):
                j = i + GRAM_BLOCK
                H[i:j, i:].addmm_(X_group[:, i:j].T, X_group[:, i:])  # (block, d - i)
        self.total += X.sum(1)
        self.n += X.shape[1]

    def gram(self) -> Tensor:
        """X^T X / n as (groups, d, d)."""
        upper = self.H.triu()
        return (upper + upper.triu(1).mT).div_(max(self.n, 1))

    def mean(self) -> Tensor:
        """The mean row (groups, d)."""
        return self.total / max(self.n, 1)
