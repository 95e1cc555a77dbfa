"""What the sources of one kind share: options, choosing samples, scores, and the check of their weights."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import DataError, SourceError
from compressor.models.records import Records
from compressor.source import Answer, Options, Score

__all__ = [
    "IGNORED",
    "Options",
    "batches",
    "best_guess",
    "check_finite",
    "choose",
    "class_loss",
    "class_score",
    "is_labelled",
    "label_ids",
    "next_token_loss",
    "perplexity",
    "top1",
]

T = TypeVar("T")

IGNORED = -100
"""A target that no loss is taken of."""


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def choose(n_available: int, n: int | None, seed: int) -> list[int]:
    """n indices in order (all there are for None, or where n are not), one at random from each of n equal stretches."""
    n = n_available if n is None else min(n, n_available)
    edges = [i * n_available // n for i in range(n + 1)] if n else []
    generator = torch.Generator().manual_seed(seed)
    # Within a stretch at random: every k-th sample of data that repeats every k would all be alike.
    return [int(torch.randint(low, high, (), generator=generator)) for low, high in pairwise(edges)]


# *** losses ***


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of the tokens after the first, for logits (B, S, V) and ids (B, S)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats, for logits (..., classes) and class numbers (...); `IGNORED` ones apart."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def is_labelled(records: Records) -> bool:
    """Whether every sample has a label to learn from."""
    return all(record.get("label") is not None for record in records.items)


# *** scores ***


def perplexity(losses: Sequence[float], unit: str, metric: str = "perplexity") -> Score:
    """exp of the mean loss; losses in nats per sample. The standard error is by the delta method."""
    mean, error = _mean_and_error(losses)
    value = math.exp(min(mean, 700.0))  # exp overflows beyond
    return Score(metric, value, len(losses), unit, value * error, False, tuple(losses), mean)


def top1(correct: Sequence[bool], unit: str, losses: Sequence[float] = ()) -> Score:
    """Share of samples whose first guess is right, in percent. losses: negative log-likelihood in nats per sample."""
    hits = [float(hit) for hit in correct]
    mean, error = _mean_and_error(hits)
    loss = sum(losses) / len(losses) if losses else None
    return Score("top-1 (%)", 100 * mean, len(hits), unit, 100 * error, True, tuple(hits), loss)


def class_score(outputs: Iterable[tuple[Tensor, Tensor]], unit: str) -> Score:
    """Top-1 of batches of logits (B, classes) and the class numbers (B,) that were wanted, with the mean loss."""
    correct: list[bool] = []
    losses: list[float] = []
    for logits, wanted in outputs:
        correct += (logits.argmax(-1) == wanted).tolist()
        losses += F.cross_entropy(logits.float(), wanted, reduction="none").tolist()
    return top1(correct, unit, losses)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    t = torch.tensor(values, dtype=torch.float64)
    return t.mean().item(), (t.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def label_ids(labels: Sequence[int | str], label2id: dict[str, int], n_classes: int) -> Tensor:
    """Labels as class numbers: numbers as they are, names through the model's own table. Raises DataError."""
    return torch.tensor([_label_id(label, label2id, n_classes) for label in labels])


def _label_id(label: int | str, label2id: dict[str, int], n_classes: int) -> int:
    number = int(label) if str(label).isdigit() else None
    index = label if isinstance(label, int) else label2id.get(label, number)
    if index is None or not 0 <= index < n_classes:
        names = ", ".join(list(label2id)[:8]) + (", ..." if len(label2id) > 8 else "")
        raise DataError(
            f"the label {label!r} is not a class of the model",
            found=f"{n_classes} classes" + (f": {names}" if names else ""),
            hint=f"labels 0 to {n_classes - 1}, or the model's own names",
        )
    return index


def best_guess(logits: Tensor, names: Sequence[str]) -> list[Answer]:
    """The likeliest class of each row of logits (n, classes), and its probability."""
    shares, classes = logits.float().softmax(-1).max(-1)
    return [Answer(names[i], share) for i, share in zip(classes.tolist(), shares.tolist(), strict=True)]


# *** weights ***


def check_finite(name: str, module: nn.Module) -> None:
    """Raise SourceError when a weight is NaN or Inf; a buffer may be infinite, as masks are."""
    parameters = dict(module.named_parameters())
    bad = [key for key, x in parameters.items() if not x.isfinite().all()]
    bad += [key for key, x in module.named_buffers() if x.isnan().any()]
    if bad:
        raise SourceError(
            f"{name} has weights that are NaN or Inf",
            found=f"{len(bad)} tensors, the first is {bad[0]}",
            hint="a checkpoint from before training diverged",
        )
