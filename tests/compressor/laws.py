"""What must hold of every cut."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from compressor.channels.cut import cut, mask
from compressor.channels.groups import ChannelGroup, find_groups
from compressor.graph import Graph

CLOSE = 1e-12  # float64


def some(groups: Iterable[ChannelGroup], share: float = 0.25, seed: int = 0) -> dict[str, Tensor]:
    """A choice that removes a share of the units of every group that can lose any, at random."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        if not group.frozen and group.units > 1:
            order = torch.randperm(group.units, generator=generator)
            keep[group.name] = group.all_kept().index_fill(0, order[: max(1, int(share * group.units))], False)
    return keep


def unsettle(graph: Graph) -> None:
    """Biases, scales and statistics that are neither 0 nor 1, so that a channel that is left in shows.

    So is whatever else is the same everywhere: torchvision starts heads at 0 and ConvNeXt's branches at 1e-6.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for x in graph.module.parameters():
            if x.ndim == 1 or bool((x == x.flatten()[0]).all()):
                x.add_(0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype))
        for name, buffer in graph.module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype))


def check_the_law(graph: Graph, keep: Mapping[str, Tensor]) -> Graph:
    """The graph after a cut, which computes what the masked one does; the graph that is given stays as it is."""
    feeds = dict(graph.example)
    masked, smaller = graph.copy(), graph.copy()
    mask(masked, keep)
    cut(smaller, keep)
    wanted, found = masked.run(feeds), smaller.run(feeds)
    first = graph.outputs[0].name
    assert not torch.allclose(wanted[first], graph.run(feeds)[first], atol=1e-6), "what was masked does not show"
    assert all(
        (found[port.name] - wanted[port.name]).abs().max() < CLOSE for port in graph.outputs if not port.is_state
    )
    assert sum(x.numel() for x in smaller.module.parameters()) < sum(x.numel() for x in graph.module.parameters())
    return smaller


def check_all_laws(graph: Graph) -> None:
    """The law; and the cut graph can be cut again, has gradients, and exports."""
    unsettle(graph)
    smaller = check_the_law(graph, some(find_groups(graph)))
    check_the_law(smaller, some(find_groups(smaller), share=0.5, seed=1))
    feeds = [smaller.example[port.name] for port in smaller.inputs]
    outputs = smaller.module(*feeds)
    outputs[0].square().sum().backward()
    assert any(x.grad is not None and x.grad.any() for x in smaller.module.parameters())
    exported = smaller.program().module(check_guards=False)(*feeds)
    assert (exported[0] - outputs[0]).abs().max() < CLOSE
