"""All blocks at once, brought near to the dense model by Adam on the samples that pruning was calibrated on.

Hinton et al. 2015 (arXiv 1503.02531), with no labels: sites are solved one after the other, each as if those behind it
would stay as they are, and what they do together is left to gradients of the scored output. The pattern is held, batch
normalizations keep their statistics, and what is kept is what does best on samples that no step has seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compressor.errors import DataError
from compressor.fingerprint import digest, own_code
from compressor.graph import Feeds, Graph
from compressor.passes.checkpoint import Checkpoint
from compressor.passes.fit import Fit, Progressed, accelerator_of
from compressor.passes.objectives import Teacher
from compressor.passes.order import Plan
from compressor.passes.student import Student, own_tensors
from compressor.passes.train_mode import Runner
from compressor.passes.trained import groups
from compressor.pipeline import Context
from compressor.sites import WeightSite
from compressor.source import Training

ROWS = 1024
"""Predictions that a step learns from, where an eighth of the samples makes as many; four windows of 256 tokens do.
Many steps of few come nearer than few of many that take as long."""

RATE = 0.002
"""First step of Adam, as a share of the root mean square of a tensor's kept values; it falls to 0 along a cosine."""

HELD_OUT, CHECKS, WARMUP = 1 / 8, 8, 0.05

MOST_HELD_OUT = 8 * ROWS
"""Predictions on samples held out, which tell the error well enough; each check makes them by both models."""

MOST_VALUES = 1 << 25
"""Of the scored output that go through at once; each is held several times over."""


def distill(
    graph: Graph, dense: Graph, sites: Sequence[WeightSite], batches: Sequence[Feeds], steps: int, context: Context
) -> str:
    """Write the kept weights of the sites, and every parameter of one axis; returns what there is to say of it.

    Raises DataError when there are too few samples to learn from some and hold out others.
    """
    pieces = Pieces.of(graph, batches)
    fit = _fit(graph, dense, sites, pieces, steps, context)
    done = fit.run(context.progress)
    fit.student.write(fit.best)
    return _said(done, pieces, fit)


def _fit(
    graph: Graph, dense: Graph, sites: Sequence[WeightSite], pieces: "Pieces", steps: int, context: Context
) -> Fit:
    accelerator, learns = accelerator_of("float32"), {id(site.weight) for site in sites}
    student = Student(graph, accelerator.device, lambda x: x.ndim == 1 or id(x) in learns)
    teacher = Teacher(graph, dense, accelerator.device, temperature=1.0, hidden=0.0, is_logits=context.is_logits)
    run = Runner(graph, teacher.wanted, accelerator.device)
    plan = Plan(steps, pieces.at_step, context.seed, WARMUP, pieces.held_out, clip=0.0, checks=CHECKS, patience=0)
    return Fit(
        student,
        teacher,
        learning=run,
        asking=run,
        training=pieces.training(context.is_logits),
        plan=plan,
        optimizer=accelerator.prepare(torch.optim.Adam(groups(list(student.trained.values()), RATE))),
        accelerator=accelerator,
        checkpoint=Checkpoint(context.kept, _key(student, dense, pieces, plan) if context.kept else "", "distill"),
        doing="distilling",
    )


@dataclass(frozen=True)
class Pieces:
    """Batches cut into some samples each, drawn from all over a batch: it may be sorted.

    at_step: how many of them a step learns from, each by itself: those of other batches may be longer. held_out: the
    share of them that none does.
    """

    feeds: Sequence[Feeds]
    at_step: int
    held_out: float

    @staticmethod
    def of(graph: Graph, batches: Sequence[Feeds]) -> "Pieces":
        total = sum(map(_size, batches))
        if total < 2:
            raise DataError(
                "distilling needs samples to learn from, and others to hold out",
                found=f"{total} calibration samples",
                hint="more --calibration-samples, or --reconstruct 0",
            )
        rows, values = max((_predicted(graph, batch) for batch in batches), key=math.prod)
        at_step = max(min(ROWS // rows, round(HELD_OUT * total)), 1)
        size = max(min(at_step, MOST_VALUES // (rows * values)), 1)
        pieces = [piece for batch in batches for piece in _cut(graph, batch, size)]
        held_out = min(HELD_OUT, MOST_HELD_OUT / (rows * total))
        return Pieces(pieces, max(at_step // max(map(_size, pieces)), 1), held_out)

    def training(self, is_logits: bool) -> Training:
        described = f"{sum(map(_size, self.feeds))} calibration samples"
        none = torch.empty(0)
        return Training(
            len(self.feeds), described, lambda i, seed: (self.feeds[i[0]], none), None, is_logits, at_once=1
        )


def _predicted(graph: Graph, batch: Feeds) -> tuple[int, int]:
    """How many predictions the graph makes for one sample of a batch, and of how many values each is."""
    piece = _cut(graph, batch, 1)[0]
    made = graph.run(piece)[graph.outputs[0].name]
    values = made.shape[-1] if made.ndim > 1 else 1
    return max(made.numel() // (_size(piece) * values), 1), values


def _cut(graph: Graph, batch: Feeds, size: int) -> list[Feeds]:
    """Pieces of about that many samples; the whole where the graph takes no other number of them."""
    total = _size(batch)
    varies = {port.name for port in graph.inputs if 0 in port.dynamic}
    shared = {name for name, x in batch.items() if not x.ndim or len(x) != total}
    if not batch.keys() - shared <= varies:
        return [batch]
    n = math.ceil(total / size)
    return [
        {name: x if name in shared else x[at::n].contiguous() for name, x in batch.items()} for at in range(n)
    ]  # a graph may ask for a view of its input


def _size(batch: Feeds) -> int:
    return len(next(iter(batch.values())))


def _key(student: Student, dense: Graph, pieces: Pieces, plan: Plan) -> str:
    tensors = [part for given in (own_tensors(dense), *pieces.feeds) for pair in sorted(given.items()) for part in pair]
    return digest(own_code(), vars(plan), student.digest(), *tensors)


def _said(done: Progressed, pieces: Pieces, fit: Fit) -> str:
    held = sum(_size(pieces.feeds[i]) for i in fit.order.held)
    what = "divergence in nats" if fit.training.is_logits else "squared error as a share"
    return (
        f"reconstruct: the kept weights of all sites together learned from the dense model for {done.step} steps on"
        f" {fit.training.description}; {what} on {held} held out {done.first:.4g} -> {done.least:.4g},"
        f" best after step {done.best}"
    )
