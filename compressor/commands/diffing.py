"""`compress diff`: two models, files or artifacts side by side: operators, shapes, and what became of each weight."""

import difflib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.commands.sides import Side, Weight, open_side
from compressor.proof.proving import observed_pattern
from compressor.proof.report import as_json


@dataclass(frozen=True)
class Half:
    """A weight on one side. found: the N:M pattern along the contracted axis; zeros: share of the values."""

    shape: tuple[int, ...]
    where: str
    dtype: str
    found: str
    zeros: float


@dataclass(frozen=True)
class WeightChange:
    """One weight on both sides; None where a side has none of that name.

    relative_difference: norm of the difference as a share of the first's; None where the shapes differ, infinite where
    the first is all zeros and the second is not.
    """

    name: str
    before: Half | None
    after: Half | None
    relative_difference: float | None = None

    @property
    def is_same(self) -> bool:
        if self.before is None or self.after is None:
            return False
        return self.relative_difference == 0 and self.before.dtype == self.after.dtype


@dataclass(frozen=True)
class OperatorCount:
    """How often an operator occurs on each side."""

    op: str
    before: int
    after: int


@dataclass(frozen=True)
class Diff:
    """Two sides. True when they are the same.

    operators: whose counts differ. lines: a unified diff of the graphs, one line for each operator; both are empty
    where one side is an ONNX file and the other a model, whose operators have other names: unlike says so.
    """

    before: str
    after: str
    unlike: str
    operators: tuple[OperatorCount, ...]
    lines: tuple[str, ...]
    weights: tuple[WeightChange, ...]

    def __bool__(self) -> bool:
        return not self.lines and all(one.is_same for one in self.weights)

    def to_json(self) -> str:
        return as_json(self, same=bool(self))


def diff(before: Any, after: Any, *, trust_remote_code: bool = False) -> Diff:
    """Compare two of: an artifact's folder, an ONNX file, any model that `export` takes. Raises SourceError."""
    a, b = (open_side(one, trust_remote_code=trust_remote_code) for one in (before, after))
    names = list(dict.fromkeys([*a.weights, *b.weights]))
    weights = tuple(_compared(name, a.weights.get(name), b.weights.get(name)) for name in names)
    if a.kind != b.kind:
        unlike = f"graphs are not compared: {a.name} has {a.kind} operators, {b.name} {b.kind} ones"
        return Diff(a.name, b.name, unlike, (), (), _of_both(weights))
    return Diff(a.name, b.name, "", _counts(a, b), _lines(a, b), weights)


def _of_both(weights: tuple[WeightChange, ...]) -> tuple[WeightChange, ...]:
    """Without what one side alone has and nothing contracts: exporters fold biases and norms away, or rename them."""
    return tuple(one for one in weights if (one.before and one.after) or (one.before or one.after).where)  # type: ignore[union-attr]


def _compared(name: str, a: Weight | None, b: Weight | None) -> WeightChange:
    x, y = (None if one is None else one.read().double() for one in (a, b))
    gap = _relative(x, y) if x is not None and y is not None and x.shape == y.shape else None
    return WeightChange(name, _half(a, x), _half(b, y), gap)


def _half(one: Weight | None, x: Tensor | None) -> Half | None:
    if one is None or x is None:
        return None
    pattern = observed_pattern(x) if one.where else ""
    return Half(one.shape, one.where, one.dtype, pattern, (x == 0).double().mean().item() if x.numel() else 0.0)


def _relative(x: Tensor, y: Tensor) -> float:
    if torch.equal(x, y):
        return 0.0
    size = x.norm().item()
    return (x - y).norm().item() / size if size else float("inf")


def _counts(a: Side, b: Side) -> tuple[OperatorCount, ...]:
    before, after = (Counter(op for op, _ in side.lines) for side in (a, b))
    names = sorted(before.keys() | after.keys())
    return tuple(OperatorCount(op, before[op], after[op]) for op in names if before[op] != after[op])


def _lines(a: Side, b: Side) -> tuple[str, ...]:
    before, after = ([line for _, line in side.lines] for side in (a, b))
    return tuple(difflib.unified_diff(before, after, a.name, b.name, lineterm="", n=1))
