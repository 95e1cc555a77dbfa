"""A damped Gram matrix of some inputs, and its factors: each computed once for all weights that read these inputs.

Query, key and value, and the gate and the rise of an MLP, read the same activation. Their Gram matrix is one, and so
are its factors: what a weight gets is the same, bit for bit, whether it asks first or last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError

INVERTS = 3
"""Solving for m columns of d by an inverse costs less from about m = d / INVERTS on, where three products share it."""


class IndefiniteGram(DataError, ArithmeticError):
    """A damped Gram matrix that has no Cholesky factor."""


@dataclass(frozen=True)
class Gram:
    """H (d, d), damped: symmetric and positive definite.

    is_shared: whether several weights will ask for its factors, which are then kept; else one is held at a time.
    """

    H: Tensor
    is_shared: bool = False
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(H: Tensor | Gram) -> Gram:
        return H if isinstance(H, Gram) else Gram(H)

    def upper(self) -> Tensor:
        """The upper R of H = R R^T: the lower Cholesky factor of H with both axes reversed, reversed back."""
        return self._once("upper", lambda: _cholesky(self.H.flip(0, 1)).flip(0, 1))

    def norms(self) -> Tensor:
        """n (d,), the root mean square of each input."""
        return self.H.diagonal().sqrt()

    def correlations(self) -> Tensor:
        """A = H / (n n^T), whose diagonal is 1."""
        return self._once("correlations", lambda: self.H / torch.outer(self.norms(), self.norms()))

    def shifted(self, rho: float) -> Shifted:
        """A + rho I, to solve with."""
        return self._once(rho, lambda: Shifted.of(self.correlations(), rho))

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if not self.is_shared:
            return make()
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


@dataclass(frozen=True)
class Shifted:
    """(A + rho I)^-1 times a matrix of m columns: by the factor L (d, d), or where that costs less by the inverse."""

    L: Tensor

    @staticmethod
    def of(A: Tensor, rho: float) -> Shifted:
        shifted = A.clone()
        shifted.diagonal().add_(rho)
        return Shifted(_cholesky(shifted))

    def __call__(self, R: Tensor) -> Tensor:
        d, m = R.shape
        return self.inverse @ R if m * INVERTS > d else torch.cholesky_solve(R, self.L)

    @cached_property
    def inverse(self) -> Tensor:
        return torch.cholesky_inverse(self.L)


def _cholesky(H: Tensor) -> Tensor:
    """The lower factor. Raises IndefiniteGram if there is none."""
    L, info = torch.linalg.cholesky_ex(H)
    if info or not L.diagonal().isfinite().all():
        raise IndefiniteGram(
            "the damped Gram matrix of the inputs is not positive definite",
            found=f"no Cholesky factor for its {len(H)} channels",
            hint="a larger damping, for example --damping 0.1, or more calibration samples",
        )
    return L
