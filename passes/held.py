"""What training must not change: shapes, and zeros. Arrays only."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Held:
    """A weight's shape, and where it is zero, a bit for each value."""

    shape: tuple[int, ...]
    zeros: bytes

    @staticmethod
    def of(W: Tensor) -> "Held":
        return Held(tuple(W.shape), np.packbits((W.detach() == 0).cpu().numpy()).tobytes())

    def is_kept_by(self, W: Tensor) -> bool:
        now = np.frombuffer(Held.of(W).zeros, np.uint8)
        before = np.frombuffer(self.zeros, np.uint8)
        return self.shape == tuple(W.shape) and bool((now & before == before).all())
