"""What the sources of one kind share: options, batching, scores."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.source import Options, Score

__all__ = ["Options", "batches", "label_ids", "perplexity", "spread", "top1"]

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def spread(n_available: int, n: int) -> list[int]:
    """n indices (or all there are) spread evenly over what is available."""
    n = min(n, n_available)
    return [index * n_available // n for index in range(n)]


def perplexity(losses: Sequence[float], unit: str, metric: str = "perplexity") -> Score:
    """exp of the mean loss; losses in nats per sample. The standard error is by the delta method."""
    mean, error = _mean_and_error(losses)
    value = math.exp(min(mean, 700.0))
    return Score(metric, value, len(losses), unit, value * error, False, tuple(losses))


def top1(correct: Sequence[bool], unit: str) -> Score:
    """Share of samples whose first guess is right, in percent."""
    hits = [float(hit) for hit in correct]
    mean, error = _mean_and_error(hits)
    return Score("top-1 (%)", 100 * mean, len(hits), unit, 100 * error, True, tuple(hits))


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), (t.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def label_ids(labels: Sequence[Any], label2id: dict[str, int], n_classes: int) -> Tensor:
    """Labels as class numbers: integers as they are, names through the model's own table."""
    ids = []
    for label in labels:
        index = label if isinstance(label, int) else label2id.get(str(label), _as_int(label))
        if index is None or not 0 <= index < n_classes:
            raise DataError(
                f"label {label!r} is not a class of the model",
                found=f"{n_classes} classes: {', '.join(list(label2id)[:8])}",
                hint="data labelled 0.." + str(n_classes - 1) + ", or with the model's own names",
            )
        ids.append(index)
    return torch.tensor(ids)


def _as_int(label: Any) -> int | None:
    return int(label) if str(label).isdigit() else None


