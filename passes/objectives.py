"""What is learned: labels, or what the dense model makes of the same inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from compressor.graph import Feeds, Graph
from compressor.passes.student import own_tensors
from compressor.passes.train_mode import Runner
from compressor.segments import block_of, scored, segments


class Objective(Protocol):
    """A loss of some nodes of the student. wanted: these nodes, the scored output first."""

    @property
    def wanted(self) -> Sequence[fx.Node]: ...

    def loss(self, made: Sequence[Tensor], feeds: Feeds, targets: Tensor) -> Tensor: ...


class Labels:
    """The task's own loss."""

    def __init__(self, student: Graph, loss: Callable[[Tensor, Tensor], Tensor]):
        self.wanted, self._loss = [scored_output(student)], loss

    def loss(self, made: Sequence[Tensor], feeds: Feeds, targets: Tensor) -> Tensor:
        return self._loss(made[0].float(), targets)


class Teacher:
    """What the dense model puts out, and what its blocks do on the way, where both models have such a block.

    Hinton et al. 2015 (arXiv 1503.02531) for outputs softened by a temperature; Romero et al. 2015 (FitNets, arXiv
    1412.6550) for what lies between. The loss of a student that equals its teacher is zero.
    """

    def __init__(
        self,
        student: Graph,
        dense: Graph,
        device: torch.device,
        *,
        temperature: float,
        hidden: float,
        is_logits: bool,
    ):
        pairs = aligned(student, dense) if hidden else {}
        self.blocks, self.hidden, self.temperature, self.is_logits = list(pairs), hidden, temperature, is_logits
        self.wanted = [scored_output(student), *(node for node, _ in pairs.values())]
        self._run = Runner(dense, [scored_output(dense), *(node for _, node in pairs.values())], device)
        self._tensors: Mapping[str, Tensor] = {name: x.detach().to(device) for name, x in own_tensors(dense).items()}

    def loss(self, made: Sequence[Tensor], feeds: Feeds, targets: Tensor) -> Tensor:
        shown = self._run(feeds, self._tensors)
        first = divergence(made[0], shown[0], self.temperature) if self.is_logits else share(made[0], shown[0])
        between = [share(x, y) for x, y in zip(made[1:], shown[1:], strict=True)]
        return first + self.hidden * torch.stack(between).mean() if between else first


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL divergence in nats from the wanted classes to those of logits (..., classes), both softened, averaged.

    Times the square of the temperature, so that its gradients are as large as those without one.
    """
    found = (logits.float() / temperature).log_softmax(-1).flatten(0, -2)  # (n, classes)
    asked = (wanted.float() / temperature).log_softmax(-1).flatten(0, -2)
    return temperature**2 * F.kl_div(found, asked, reduction="batchmean", log_target=True)


def share(made: Tensor, wanted: Tensor) -> Tensor:
    """Squared error as a share of the energy of what is wanted."""
    energy = wanted.float().square().sum()
    return (made.float() - wanted.float()).square().sum() / energy.clamp_min(torch.finfo(torch.float32).tiny)


def aligned(student: Graph, dense: Graph) -> dict[str, tuple[fx.Node, fx.Node]]:
    """The outputs of each block that both graphs have and that agree in shape, by `block:number`."""
    ours, theirs = block_outputs(student), block_outputs(dense)
    return {name: (ours[name], theirs[name]) for name in ours if name in theirs and _alike(ours[name], theirs[name])}


def block_outputs(graph: Graph) -> dict[str, fx.Node]:
    """What each block computes for the blocks after it, by `block:number`."""
    found: dict[str, fx.Node] = {}
    for part in segments(graph, graph.sites, whole=True):
        inside = set(part.nodes)
        leaving = [node for node in part.nodes if node in part.outputs and _is_read_outside(node, inside)]
        block = block_of(part.sites[-1].name)
        found |= {f"{block}:{i}": node for i, node in enumerate(leaving)}
    return found


def _is_read_outside(node: fx.Node, inside: set[fx.Node]) -> bool:
    """A cache of keys and values leaves a block too, but as an output of the graph."""
    return node.op != "placeholder" and any(user not in inside and user.op != "output" for user in node.users)


def _alike(one: fx.Node, other: fx.Node) -> bool:
    """Of the same rank and the same fixed sizes."""
    a, b = one.meta["val"].shape, other.meta["val"].shape
    fixed = [(i, j) for i, j in zip(a, b, strict=False) if isinstance(i, int) and isinstance(j, int)]
    return len(a) == len(b) and all(i == j for i, j in fixed)


def scored_output(graph: Graph) -> fx.Node:
    return scored(next(iter(reversed(graph.module.graph.nodes))))
