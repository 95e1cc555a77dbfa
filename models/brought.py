"""Samples to learn from that a model of the user's own brings along, as tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compressor.errors import SourceError
from compressor.graph import Feeds
from compressor.models.task import choose
from compressor.source import Training

Loss = Callable[[Tensor, Tensor], Tensor]


def brought(
    name: str, pairs: Sequence[tuple[Feeds, Tensor | None]], n: int | None, seed: int, loss: Loss, is_logits: bool
) -> Training:
    """n samples of all batches together, or all of them; without a loss where targets are missing.

    Raises SourceError when batches differ in more than how many samples they hold.
    """
    wanted = [targets for _, targets in pairs if targets is not None]
    try:
        feeds = {key: _joined([one[key] for one, _ in pairs]) for key in pairs[0][0]}
        targets = torch.cat(wanted) if wanted else None
    except (RuntimeError, KeyError) as error:
        raise SourceError(
            f"the training samples of {name} do not fit together",
            found=" ".join(str(error).split()),
            hint="inputs and targets that are alike but for their first axis",
        ) from error
    chosen = torch.tensor(choose(max(len(x) for x in feeds.values() if x.ndim), n, seed))

    def batch(rows: Sequence[int], seed: int) -> tuple[Feeds, Tensor]:
        at = chosen[rows]
        return {key: x[at] if x.ndim else x for key, x in feeds.items()}, at if targets is None else targets[at]

    described = f"{len(chosen)} samples that {name} brings"
    return Training(len(chosen), described, batch, None if targets is None else loss, is_logits)


def _joined(batches: Sequence[Tensor]) -> Tensor:
    """Along the first axis; a number, which is no batch, as it is."""
    return torch.cat(list(batches)) if batches[0].ndim else batches[0]
