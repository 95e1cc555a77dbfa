"""Tensors that are trained with their zeros held, and how far they step. Arrays only."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trained:
    """A tensor of a model that is trained: what stands in its place is leaf * keep.

    However the leaf moves (momentum, decay), the product is zero where `keep` is not, and nothing flows back to there.
    """

    x: Tensor
    keep: Tensor
    leaf: Tensor

    @staticmethod
    def of(x: Tensor, *, holds_zeros: bool, device: torch.device | None = None) -> "Trained":
        """Starts from x, on a device; with holds_zeros what is zero in it stays zero."""
        keep = x.detach() != 0 if holds_zeros else torch.ones_like(x, dtype=torch.bool)
        # Where a convolution runs on the CPU, channels last is the faster layout; numbers are the same.
        layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        leaf = x.detach().to(device, copy=True).contiguous(memory_format=layout).requires_grad_()
        return Trained(x, keep.to(device).contiguous(memory_format=layout), leaf)

    def value(self) -> Tensor:
        return self.leaf * self.keep

    def rms(self) -> float:
        """Root mean square of the kept values."""
        return float(self.x.detach()[self.keep.to(self.x.device)].square().mean().sqrt()) if self.keep.any() else 0.0


def groups(trained: list[Trained], rate: float, **options: Any) -> list[dict[str, Any]]:
    """A parameter group for each tensor, whose first step is a share `rate` of the root mean square of what it holds.

    A tensor of zeros, as biases may be, steps as a typical matrix does.
    """
    typical = max((one.rms() for one in trained if one.x.ndim > 1), default=1.0)
    steps = [rate * (one.rms() or typical) for one in trained]
    return [
        {"params": [one.leaf], "lr": step, "first": step, **options} for one, step in zip(trained, steps, strict=True)
    ]


def set_rates(optimizer: Any, share: float) -> None:
    """Let every group take that share of its first step."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["first"]


def falling(step: int, steps: int, warmup: int = 0) -> float:
    """The share of the first step that step number `step` takes: it rises over the warm-up, then falls along a cosine.

    Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5 with one cycle.
    """
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2
