"""Ranges of activations: which scale and zero round one to 8 bits, from what was seen of it. Arrays only."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.quantization import Rounding

RANGES = ("mse", "minmax", "percentile")
LEVELS, MIDDLE = 255, 128
SHARE = 0.9999
"""Of the values, how many lie below the upper end of the range `percentile`, and above the lower."""

SHRINKS = torch.linspace(1.0, 0.2, 41)
SAMPLE = 2**16
"""Values of one activation that are kept to choose its range by."""


@dataclass
class Seen:
    """One activation's least and largest value, and a random sample of the others; `share` values a batch."""

    share: int
    generator: torch.Generator
    low: float = float("inf")
    high: float = -float("inf")
    parts: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor) -> None:
        x = x.detach().flatten().float()
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.parts.append(x[torch.randint(len(x), (min(self.share, len(x)),), generator=self.generator).to(x.device)])

    @property
    def varies(self) -> bool:
        return self.low < self.high

    def rounding(self, how: str, is_symmetric: bool) -> Rounding:
        """The rounding to codes from 0 to 255 of the range that `how` chooses, widened to hold zero.

        how: "minmax" all that was seen; "percentile" all but the outermost 1 - SHARE at either end; "mse" the range
            with which the squared error on the sample is least.
        """
        x = torch.cat(self.parts)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if how == "percentile":
            low, high = (float(x.quantile(q).clamp(low, high)) for q in (1 - SHARE, SHARE))
            low, high = min(low, 0.0), max(high, 0.0)
        if is_symmetric:
            low, high = -max(-low, high), max(-low, high)
        if how == "mse":
            low, high = _least_error(x, low, high, is_symmetric)
        return _rounding(low, high, is_symmetric)


def _rounding(low: float, high: float, is_symmetric: bool) -> Rounding:
    if is_symmetric:
        return Rounding("static", _float32(high / (LEVELS // 2)), MIDDLE)
    scale = _float32((high - low) / LEVELS)
    return Rounding("static", scale, round(-low / scale))


def _float32(value: float) -> float:
    """As it will be stored; never zero."""
    return float(torch.tensor(value).clamp_min(torch.finfo(torch.float32).tiny))


def _least_error(x: Tensor, low: float, high: float, is_symmetric: bool) -> tuple[float, float]:
    """The ends, drawn in together where they must be opposite, else one after the other."""
    if is_symmetric:
        return min(((s * low, s * high) for s in SHRINKS.tolist()), key=lambda ends: _error(x, ends[0], ends[1], True))
    high = min((s * high for s in SHRINKS.tolist()), key=lambda end: _error(x, low, end, False)) if high else high
    low = min((s * low for s in SHRINKS.tolist()), key=lambda end: _error(x, end, high, False)) if low else low
    return low, high


def _error(x: Tensor, low: float, high: float, is_symmetric: bool) -> float:
    how = _rounding(low, high, is_symmetric)
    codes = (x / how.scale).round_().add_(how.zero).clamp_(0, LEVELS)
    return float(codes.sub_(how.zero).mul_(how.scale).sub_(x).square_().mean())
