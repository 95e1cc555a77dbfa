"""Adam on a block's kept weights, its biases and its norms, to bring its outputs near to wanted ones.

As in EBFT (Guo et al. 2024, arXiv 2402.12419): single layers are solved in closed form, what lies between them is not.
A weight is a leaf times its mask, so that no step can leave the pattern. What is kept is what does best on batches that
no step has seen.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from compressor.calibrate import Block
from compressor.machine import Values
from compressor.passes.trained import Trained, falling, groups, set_rates
from compressor.passes.trials import put

CHECKS = 8
"""How often the batches held out are asked."""

RATE = 0.02
"""First step of Adam, as a share of the root mean square of a tensor's kept values; it falls to 0 along a cosine."""


def reconstruct(block: Block, wanted: Sequence[Values], steps: int) -> dict[str, float]:
    """Write the block's parameters; returns the held-out errors before and after, by name."""
    trained = dict(_trained(block))
    tensors = [one.x for one in trained.values()]
    first = least = block.held_out_error()
    kept = [x.detach().clone() for x in tensors]
    for _ in _descend(block, wanted, trained, steps):
        put(tensors, [one.value().detach() for one in trained.values()])
        error = block.held_out_error()
        if error < least:
            least, kept = error, [x.detach().clone() for x in tensors]
    put(tensors, kept)
    return {"held_out_error_before": first, "held_out_error": least}


def _descend(
    block: Block, wanted: Sequence[Values], trained: Mapping[tuple[fx.Node, ...], Trained], steps: int
) -> Iterator[None]:
    """Take the steps, on one batch after the other; pause CHECKS times."""
    adam = torch.optim.Adam(groups(list(trained.values()), RATE))
    for step in range(steps):
        at = block.learned[step % len(block.learned)]
        set_rates(adam, falling(step, steps))
        adam.zero_grad()
        loss = block.loss(at, wanted[at], {node: one.value() for nodes, one in trained.items() for node in nodes})
        loss.backward(inputs=[one.leaf for one in trained.values()])  # type: ignore[no-untyped-call]
        adam.step()
        if (step + 1) % max(steps // CHECKS, 1) == 0 or step == steps - 1:
            yield


def _trained(block: Block) -> Iterator[tuple[tuple[fx.Node, ...], Trained]]:
    """The weights of the block's sites, and every parameter of one axis that only this block reads, by their nodes."""
    sites = {id(site.weight) for site in block.segment.sites}
    for x, nodes in block.parameters():
        if id(x) in sites or x.ndim == 1:
            yield nodes, Trained.of(x, holds_zeros=id(x) in sites)
