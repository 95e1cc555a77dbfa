"""All blocks at once, brought near to the dense model by Adam on the samples that pruning was calibrated on.

Hinton et al. 2015 (arXiv 1503.02531), with no labels: sites are solved one after the other, each as if those behind it
would stay as they are, and what they do together is left to gradients of the scored output. The pattern is held, batch
normalizations keep their statistics, and what is kept is what does best on samples that no step has seen.
"""

import math
from collections.abc import Sequence

import torch

from compressor.errors import DataError, InternalError
from compressor.fingerprint import digest, own_code
from compressor.graph import Feeds, Graph
from compressor.passes.checkpoint import Checkpoint
from compressor.passes.fit import Fit, Progressed, accelerator_of
from compressor.passes.objectives import Teacher
from compressor.passes.order import Plan
from compressor.passes.student import Student
from compressor.passes.train_mode import Runner
from compressor.passes.trained import groups
from compressor.pipeline import Context
from compressor.sites import WeightSite
from compressor.source import Training

BATCH = 8
"""Samples in a step: many steps of few come nearer than few of many that take as long."""

RATE = 0.003
"""First step of Adam, as a share of the root mean square of a tensor's kept values; it falls to 0 along a cosine."""

HELD_OUT, CHECKS, WARMUP = 1 / 8, 8, 0.05

MOST_VALUES = 1 << 25
"""Of the scored output that go through at once; each is held several times over."""


def distill(graph: Graph, sites: Sequence[WeightSite], batches: Sequence[Feeds], steps: int, context: Context) -> str:
    """Write the kept weights of the sites, and every parameter of one axis; returns what there is to say of it.

    Raises DataError when there are too few samples to learn from some and hold out others.
    """
    fit = _fit(graph, sites, _pieces(graph, batches), steps, context)
    done = fit.run(context.progress)
    fit.student.write(fit.best)
    return _said(done, fit)


def _fit(graph: Graph, sites: Sequence[WeightSite], pieces: Sequence[Feeds], steps: int, context: Context) -> Fit:
    if context.dense is None:
        raise InternalError("sparsify was not given the dense model to distill from")
    accelerator, learns = accelerator_of("float32"), {id(site.weight) for site in sites}
    student = Student(graph, accelerator.device, lambda x: x.ndim == 1 or id(x) in learns)
    teacher = Teacher(
        graph, context.dense, accelerator.device, temperature=1.0, hidden=0.0, is_logits=context.is_logits
    )
    run = Runner(graph, teacher.wanted, accelerator.device)
    at_once = max(BATCH // max(map(_size, pieces)), 1)
    return Fit(
        student,
        teacher,
        run,
        run,
        _training(pieces, context.is_logits),
        Plan(steps, at_once, context.seed, WARMUP, HELD_OUT, clip=0.0, checks=CHECKS, patience=0),
        accelerator.prepare(torch.optim.Adam(groups(list(student.trained.values()), RATE))),
        accelerator,
        Checkpoint(context.kept, _key(student, pieces, steps, context.seed) if context.kept else "", "distill"),
        "distilling",
    )


def _training(pieces: Sequence[Feeds], is_logits: bool) -> Training:
    """One piece is one sample, and goes through the model alone: those of other batches may be longer."""
    samples = f"{sum(map(_size, pieces))} calibration samples"
    return Training(
        len(pieces), samples, lambda rows, seed: (pieces[rows[0]], torch.empty(0)), None, is_logits, at_once=1
    )


def _pieces(graph: Graph, batches: Sequence[Feeds]) -> list[Feeds]:
    """Batches cut into some samples each, drawn from all over a batch: it may be sorted."""
    total = sum(map(_size, batches))
    if total < 2:
        raise DataError(
            "distilling needs samples to learn from, and others to hold out",
            found=f"{total} calibration samples",
            hint="more --calibration-samples, or --distill 0",
        )
    name = graph.outputs[0].name
    values = max(graph.run(_rows(batch, slice(1)))[name].numel() for batch in batches)
    size = max(min(BATCH, MOST_VALUES // values, total // round(1 / HELD_OUT)), 1)
    return [
        _rows(batch, slice(at, None, n))
        for batch in batches
        for n in [math.ceil(_size(batch) / size)]
        for at in range(n)
    ]


def _rows(batch: Feeds, rows: slice) -> Feeds:
    """Some samples of a batch; what all of them share stays as it is."""
    n = _size(batch)
    return {name: x[rows] if x.ndim and len(x) == n else x for name, x in batch.items()}


def _size(batch: Feeds) -> int:
    return len(next(iter(batch.values())))


def _key(student: Student, pieces: Sequence[Feeds], steps: int, seed: int) -> str:
    feeds = [part for piece in pieces for pair in sorted(piece.items()) for part in pair]
    return digest(own_code(), steps, seed, student.digest(), *feeds)


def _said(done: Progressed, fit: Fit) -> str:
    return (
        f"distilled from the dense model for {done.step} steps on {fit.training.description}; divergence on the"
        f" eighth held out {done.first:.4g} -> {done.least:.4g}, best after step {done.best}"
    )
