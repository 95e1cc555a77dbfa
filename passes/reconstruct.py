"""Adam on a block's kept weights, its biases and its norms, to bring its outputs near to wanted ones.

As in EBFT (Guo et al. 2024, arXiv 2402.12419): single layers are solved in closed form, what lies between them is not.
A weight is a leaf times its mask, so that no step can leave the pattern. What is kept is what does best on batches that
no step has seen.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from compressor.calibrate import Block
from compressor.machine import Values
from compressor.passes.trials import put

CHECKS = 8
"""How often the batches held out are asked."""

RATE = 0.02
"""First step of Adam, as a share of the root mean square of a tensor's kept values; it falls to 0 along a cosine."""


@dataclass(frozen=True)
class Trained:
    """A tensor that is trained: x = leaf * keep, wherever the nodes read it."""

    x: Tensor
    nodes: tuple[fx.Node, ...]
    keep: Tensor
    leaf: Tensor

    def value(self) -> Tensor:
        return self.leaf * self.keep

    def rms(self) -> float:
        return float(self.x.detach()[self.keep].square().mean().sqrt()) if self.keep.any() else 0.0


def reconstruct(block: Block, wanted: Sequence[Values], steps: int) -> dict[str, float]:
    """Write the block's parameters; returns the held-out errors before and after, by name."""
    trained = list(_trained(block))
    tensors = [one.x for one in trained]
    first = least = block.held_out_error()
    kept = [x.detach().clone() for x in tensors]
    for _ in _descend(block, wanted, trained, steps):
        put(tensors, [one.value().detach() for one in trained])
        error = block.held_out_error()
        if error < least:
            least, kept = error, [x.detach().clone() for x in tensors]
    put(tensors, kept)
    return {"held_out_error_before": first, "held_out_error": least}


def _descend(block: Block, wanted: Sequence[Values], trained: Sequence[Trained], steps: int) -> Iterator[None]:
    """Take the steps, on one batch after the other; pause CHECKS times."""
    typical = max((one.rms() for one in trained if one.x.ndim > 1), default=1.0)
    groups = [{"params": [one.leaf], "lr": RATE * (one.rms() or typical)} for one in trained]
    adam = torch.optim.Adam(groups)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    batches = [at for at in range(len(wanted)) if at not in block.final]
    for step in range(steps):
        at = batches[step % len(batches)]
        adam.zero_grad()
        loss = block.loss(at, wanted[at], {node: one.value() for one in trained for node in one.nodes})
        loss.backward(inputs=[one.leaf for one in trained])  # type: ignore[no-untyped-call]
        adam.step()
        falling.step()
        if (step + 1) % max(steps // CHECKS, 1) == 0 or step == steps - 1:
            yield


def _trained(block: Block) -> Iterator[Trained]:
    """The weights of the block's sites, and every parameter of one axis that only this block reads."""
    sites = {id(site.weight) for site in block.segment.sites}
    for x, nodes in block.parameters():
        if id(x) in sites or x.ndim == 1:
            keep = x.detach() != 0 if id(x) in sites else torch.ones_like(x, dtype=torch.bool)
            yield Trained(x, nodes, keep, x.detach().clone().requires_grad_())
