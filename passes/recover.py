"""The pass `recover`: what pruning has cost is learned again, with every zero and every shape held."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from compressor.errors import DataError, InternalError, RecipeError
from compressor.fingerprint import digest, own_code
from compressor.graph import Graph
from compressor.passes.augment import WAYS
from compressor.passes.checkpoint import Checkpoint
from compressor.passes.fit import Fit, Progressed, accelerator_of
from compressor.passes.held import Held
from compressor.passes.objectives import Labels, Objective, Teacher
from compressor.passes.order import Order, Plan
from compressor.passes.student import Student
from compressor.passes.train_mode import Runner
from compressor.passes.trained import groups
from compressor.pipeline import Context, Outcome, Row, format_pass
from compressor.registry import unknown
from compressor.source import Training

METHODS = ("finetune", "distill")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Recovered(Outcome):
    """held: what every site was before, by name."""

    held: Mapping[str, Held] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Recover:
    """Train the graph as it stands, by AdamW along a cosine; the state that does best on held-out samples is kept.

    Zeros of weights that the graph contracts stay zero; batch normalization learns in training mode; dropout stays off.

    method: "finetune" on the labels of the training data; "distill" from the dense model, which needs no labels.
    steps: how many; 0 takes epochs. epochs: how often each sample is seen.
    batch: samples per step.
    rate: the first step of each tensor, as a share of the root mean square of what it holds.
    decay: AdamW's weight decay. clip: the largest norm of a gradient, 0 for any. warmup: share of the steps.
    training: how many samples; 0 takes all there are. held_out: the share of them that is not learned from.
    checks: how often these are asked. patience: how many checks without progress end the training, 0 for none.
    temperature: of the softened classes, for distill. hidden: weight of the block outputs beside them, 0 for none.
    augment: what is done to images: "crop" shifts them by up to an eighth, "flip" mirrors half of them.
    precision: "float32"; "bfloat16", mixed; "auto" mixes where there is a GPU that can.
    """

    name: ClassVar[str] = "recover"
    needs_data: ClassVar[bool] = False
    samples: ClassVar[int] = 0

    method: str
    steps: int = 0
    epochs: float = 1.0
    batch: int = 32
    rate: float = 0.01
    decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.1
    training: int = 0
    held_out: float = 0.1
    checks: int = 10
    patience: int = 5
    temperature: float = 2.0
    hidden: float = 1.0
    augment: tuple[str, ...] = ()
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        for way in self.augment:
            if way not in WAYS:
                raise unknown("augment", way, WAYS)
        least = {"steps": 0, "batch": 1, "decay": 0, "clip": 0, "training": 0, "checks": 1, "patience": 0, "hidden": 0}
        for option, value in least.items():
            if getattr(self, option) < value:
                raise RecipeError(f"recover.{option} cannot be {getattr(self, option)}", hint=f"at least {value}")
        if min(self.epochs, self.rate, self.temperature) <= 0:
            raise RecipeError("epochs, rate and temperature of recover must be above 0")
        if not 0 <= self.warmup < 1 or not 0 < self.held_out <= 0.5:
            raise RecipeError("of recover, warmup is a share below 1, and held_out one of at most 0.5")

    @property
    def training_samples(self) -> int | None:
        return self.training or None

    @property
    def needs_dense(self) -> bool:
        return self.method == "distill"

    def plan(self, graph: Graph) -> list[Row]:
        """Nothing is asked of any site: it trains what the passes before have left of all of them."""
        return []

    def check(self, training: Training) -> None:
        if self.method == "finetune" and training.loss is None:
            raise DataError(
                "finetune needs labels to learn from",
                found=f"none in {training.description}",
                hint="--recover distill, which learns from the dense model, or --data with labels",
            )
        if training.n < 2:
            raise DataError(
                "recovery needs samples to learn from, and others to hold out",
                found=training.description,
                hint="more data, or a shorter --window",
            )

    def foretell(self, graph: Graph, training: Training) -> str:
        fit = self._fit(graph, training, Context(dense=graph))
        seconds = fit.seconds()
        took = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        steps = f"{fit.plan.steps} steps of {fit.order.batch}"
        return f"about {took} for {steps} on {training.description}, {len(fit.order.held)} of them held out"

    def run(self, graph: Graph, context: Context) -> Outcome:
        if context.training is None:
            raise InternalError("recover was given no training samples")
        held = {site.name: Held.of(site.weight) for site in graph.sites}
        training = context.training(self.training_samples)
        self.check(training)
        fit = self._fit(graph, training, context)
        done = fit.run(context.progress)
        fit.student.write(fit.best)
        return Recovered((), notes=(self._said(done, fit),), held=held)

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        assert isinstance(outcome, Recovered)
        now = {site.name: site.weight for site in graph.sites}
        broken = [name for name, held in outcome.held.items() if name not in now or not held.is_kept_by(now[name])]
        if broken:
            raise InternalError(f"recover has changed the shape of {broken[0]}, or a zero of it")

    def _fit(self, graph: Graph, training: Training, context: Context) -> Fit:
        accelerator = accelerator_of(self.precision)
        student = Student(graph, accelerator.device)
        objective = self._objective(graph, training, context, accelerator.device)
        key = digest(own_code(), format_pass(self), context.seed, training.description, student.digest())
        return Fit(
            student,
            objective,
            Runner(graph, objective.wanted, accelerator.device, training=True),
            Runner(graph, objective.wanted, accelerator.device),
            training,
            self._schedule(training.n, context.seed),
            self._optimizer(student, accelerator),
            accelerator,
            Checkpoint(context.kept, key),
        )

    def _objective(self, graph: Graph, training: Training, context: Context, device: torch.device) -> Objective:
        if training.loss is not None and self.method == "finetune":
            return Labels(graph, training.loss)
        assert context.dense is not None
        return Teacher(
            graph, context.dense, device,
            temperature=self.temperature, hidden=self.hidden, is_logits=training.is_logits,
        )  # fmt: skip

    def _schedule(self, n: int, seed: int) -> Plan:
        plan = Plan(
            0, self.batch, seed, self.warmup, self.held_out, self.clip, self.checks, self.patience, self.augment
        )
        return dataclasses.replace(plan, steps=self.steps or max(1, round(self.epochs * Order(n, plan).per_epoch)))

    def _optimizer(self, student: Student, accelerator: Any) -> Any:
        """AdamW; biases and norms, which have one axis, do not decay."""
        matrices = [one for one in student.trained.values() if one.x.ndim > 1]
        rest = [one for one in student.trained.values() if one.x.ndim <= 1]
        made = groups([*matrices, *rest], self.rate)
        for group, one in zip(made, [*matrices, *rest], strict=True):
            group["weight_decay"] = self.decay if one.x.ndim > 1 else 0.0
        return accelerator.prepare(torch.optim.AdamW(made))

    def _said(self, done: Progressed, fit: Fit) -> str:
        what = {"finetune": "labels", "distill": "the dense model"}[self.method]
        epochs = done.step / fit.order.per_epoch
        if isinstance(fit.objective, Teacher) and fit.objective.blocks:
            what += f" and its {len(fit.objective.blocks)} block outputs"
        early = f", ended early ({done.ended})" if done.ended else ""
        return (
            f"recover: learned from {what} for {done.step} steps of {fit.order.batch} ({epochs:.2g} epochs){early}; "
            f"held-out loss {done.first:.4g} -> {done.least:.4g} on {len(fit.order.held)} samples, "
            f"best after step {done.best}; {fit.training.description}"
        )
