"""Training, step after step: which samples, how far, what is kept, and how a killed run goes on.

Everything that a step does follows from its number and the seed, so that a run that goes on from a checkpoint ends in
the same bytes as one that was never killed.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compressor.graph import Feeds
from compressor.passes.augment import augment
from compressor.passes.checkpoint import Checkpoint
from compressor.passes.objectives import Objective
from compressor.passes.order import Order, Plan, mixed
from compressor.passes.student import Student
from compressor.passes.train_mode import Runner
from compressor.passes.trained import falling, set_rates
from compressor.progress import Progress
from compressor.source import Training


@dataclass
class Progressed:
    """How far training is: what a checkpoint holds besides tensors.

    first, least: the held-out loss at the start, and the least so far, after `best` steps. strikes: checks since then.
    """

    step: int = 0
    first: float = math.nan
    least: float = math.inf
    best: int = 0
    strikes: int = 0
    ended: str = ""


@dataclass
class Fit:
    """One training run. doing: what it is called while it lasts."""

    student: Student
    objective: Objective
    learning: Runner
    asking: Runner
    training: Training
    plan: Plan
    optimizer: Any
    accelerator: Any
    checkpoint: Checkpoint
    doing: str = "recovering"
    order: Order = field(init=False)
    best: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.order = Order(self.training.n, self.plan)
        self.best = self.student.state()

    def run(self, progress: Progress) -> Progressed:
        """Take the steps; leaves the best state in `best`."""
        at = self._resumed()
        with progress.task(self.doing, total=self.plan.steps) as show:
            for _ in range(at.step):
                show()
            if not at.step:
                at = self._checked(Progressed(first=(first := self.held_out_loss())), first)
            while at.step < self.plan.steps and not at.ended:
                loss = self._descend(at.step)
                at.step += 1
                show(f"loss {loss:.3f}, held out {at.least:.3f}")
                if self.plan.is_due(at.step):
                    at = self._checked(at, self.held_out_loss())
                    self._save(at)
        return at

    def _checked(self, at: Progressed, loss: float) -> Progressed:
        """Keep the state if it is the best so far, or count it against those that are not."""
        if loss < at.least:
            at.least, at.best, at.strikes = loss, at.step, 0
            self.best = self.student.state()
        else:
            at.strikes += 1
        if not math.isfinite(loss):
            at.ended = "the loss is not finite"
        elif self.plan.patience and at.strikes >= self.plan.patience:
            at.ended = f"no progress in {at.strikes} checks"
        return at

    def seconds(self) -> float:
        """How long the whole run will take, from two steps, which the student has then taken."""
        step = min(self._timed(number) for number in range(2))  # the first also finds its memory
        # A check is a forward pass, a third of a step, over the samples held out.
        return step * (self.plan.steps + self.plan.checks * len(self.order.held) / self.order.batch / 3)

    def _timed(self, step: int) -> float:
        start = time.perf_counter()
        self._descend(step)
        return time.perf_counter() - start

    # *** one step ***

    def _descend(self, step: int) -> float:
        set_rates(self.optimizer, falling(step, self.plan.steps, round(self.plan.warmup * self.plan.steps)))
        self.optimizer.zero_grad()
        rows, total = self.order.rows(step), 0.0
        for number, some in enumerate(_parts(rows, self.training.at_once)):
            feeds, targets = self._batch(some, mixed(self.plan.seed, step, number), self.plan.augment)
            loss = self._loss(self.learning, feeds, targets, gradients=True) * (len(some) / len(rows))
            self.accelerator.backward(loss)
            total += loss.item()
        if self.plan.clip:
            self.accelerator.clip_grad_norm_([one.leaf for one in self.student.trained.values()], self.plan.clip)
        self.optimizer.step()
        return total

    def held_out_loss(self) -> float:
        """The mean loss on the samples held out, in evaluation form."""
        total = 0.0
        for some in _parts(self.order.held, self.training.at_once):
            feeds, targets = self._batch(some, mixed(self.plan.seed, some[0]))
            with torch.no_grad():
                total += len(some) * self._loss(self.asking, feeds, targets).item()
        return total / len(self.order.held)

    def _loss(self, run: Runner, feeds: Feeds, targets: Tensor, *, gradients: bool = False) -> Tensor:
        with self.accelerator.autocast():
            made = run(feeds, self.student.tensors(), gradients=gradients)
            return self.objective.loss(made, feeds, targets)

    def _batch(self, rows: Sequence[int], seed: int, ways: Sequence[str] = ()) -> tuple[Feeds, Tensor]:
        feeds, targets = self.training.batch(rows, seed)
        generator = torch.Generator().manual_seed(seed)
        moved = {name: _laid_out(x).to(self.accelerator.device) for name, x in feeds.items()}
        if ways:
            moved = {name: augment(x, ways, generator) if x.ndim == 4 else x for name, x in moved.items()}
        return moved, targets.to(self.accelerator.device)

    # *** checkpoints ***

    def _resumed(self) -> Progressed:
        saved = self.checkpoint.load()
        if saved is None:
            return Progressed()
        numbers, tensors = saved
        self.student.load(tensors["now"])
        self.best = dict(tensors["best"])
        _load_moments(self.optimizer, tensors["moments"])
        return Progressed(**numbers)

    def _save(self, at: Progressed) -> None:
        tensors = {"now": self.student.state(), "best": self.best, "moments": _moments(self.optimizer)}
        self.checkpoint.save(vars(at), tensors)


def _parts(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _laid_out(x: Tensor) -> Tensor:
    """Images with channels last, which convolutions on the CPU are faster on."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _moments(optimizer: Any) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": x for i, values in state.items() for name, x in values.items()}


def _load_moments(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        i, _, name = key.partition(".")
        state.setdefault(int(i), {})[name] = x
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def accelerator_of(precision: str) -> Any:
    """accelerate's device and precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    can_mix = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    mixes = precision == "bfloat16" or (precision == "auto" and can_mix)
    AcceleratorState._reset_state()  # it keeps the precision of the first run in a process
    return Accelerator(mixed_precision="bf16" if mixes else "no")
