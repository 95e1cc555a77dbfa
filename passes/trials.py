"""Several ways to write some tensors, and the one that is kept. Arrays only."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def best_of(
    trials: Sequence[Callable[[], T]], error: Callable[[T], float], written: Sequence[Tensor]
) -> tuple[int, T, float]:
    """Run each trial on the same tensors, leave those of the least error.

    error: with the tensors as a trial leaves them; it is given what the trial returned. written: every tensor that a
    trial may write. Returns which trial it was, what it returned, and its error. Of equal errors the first counts.
    """
    before = [x.detach().clone() for x in written]
    kept: tuple[float, int, T, list[Tensor]] | None = None
    for position, trial in enumerate(trials):
        put(written, before)
        lost = error(returned := trial())
        if kept is None or lost < kept[0]:
            kept = lost, position, returned, [x.detach().clone() for x in written]
    assert kept is not None, "no trials"
    put(written, kept[3])
    return kept[1], kept[2], kept[0]


def put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors, in place."""
    with torch.no_grad():
        for x, value in zip(tensors, values, strict=True):
            x.copy_(value)
