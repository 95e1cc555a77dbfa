"""Masked language models, scored by the perplexity of masked tokens."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import SourceError
from compressor.graph import Feeds, Port, Run
from compressor.models.pretrained import Pretrained
from compressor.models.task import batches, perplexity
from compressor.models.tokens import context_length, load_tokenizer, windows
from compressor.source import Evaluation, Score

MASKED_SHARE = 0.15


class Encoder(Pretrained):
    """What encoders over text share: `(input_ids, attention_mask, token_type_ids) -> logits`."""

    data_kind = "text"

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.where, self.name, self.options)

    def processor(self) -> Any:
        return self.tokenizer

    @cached_property
    def _names(self) -> list[str]:
        accepted = inspect.signature(type(self.model).forward).parameters
        return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in accepted]

    def inputs(self) -> tuple[Port, ...]:
        return tuple(Port(name, {0: "batch", 1: "sequence"}) for name in self._names)

    def example(self) -> Feeds:
        mask = torch.ones(2, 6, dtype=torch.long)
        mask[0, 4:] = 0  # padded, or the mask is pruned from the graph
        generator = torch.Generator().manual_seed(0)
        return self.feeds(torch.randint(self.model.config.vocab_size, (2, 6), generator=generator), mask)

    def feeds(self, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Feeds:
        """One call: ids, mask and segment numbers, each (B, S)."""
        given = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids) if mask is None else mask,
            "token_type_ids": torch.zeros_like(ids) if types is None else types,
        }
        return {name: given[name] for name in self._names}

    @property
    def window(self) -> int:
        return min(self.options.window, context_length(self.model.config) - 2)

    def calibration(self, n: int) -> Sequence[Feeds]:
        ids = windows(self.splits.calibration, self.tokenizer, self.window, n)
        return [self.feeds(batch) for batch in batches(ids, 8)]

    def workloads(self) -> Mapping[str, Feeds]:
        length = min(128, self.window)
        ids = torch.randint(self.model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
        return {f"sequence of {length}": self.feeds(ids)}


class MaskedLM(Encoder):
    """BERT and its kin."""

    task = "fill-mask"

    def outputs(self) -> tuple[Port, ...]:
        return (Port("logits", {0: "batch", 1: "sequence"}),)

    def evaluation(self, n: int) -> Evaluation | None:
        if self.splits.evaluation is None:
            return None
        mask_id = self.tokenizer.mask_token_id
        if mask_id is None:
            raise SourceError(f"the tokenizer of {self.name} has no mask token", hint="tokenizer.mask_token in its files")
        ids = windows(self.splits.evaluation, self.tokenizer, self.window, n)
        hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(self.options.seed)) < MASKED_SHARE
        hidden[:, 0] = True  # at least one per window

        def score(run: Run) -> Score:
            losses: list[float] = []
            for rows in batches(range(len(ids)), 8):
                at = torch.tensor(list(rows))
                logits = run(self.feeds(ids[at].masked_fill(hidden[at], mask_id)))["logits"].float()
                losses += [
                    F.cross_entropy(row[mask], target[mask]).item()
                    for row, target, mask in zip(logits, ids[at], hidden[at], strict=True)
                ]
            return perplexity(losses, f"windows of {self.window} tokens, {MASKED_SHARE:.0%} masked", "masked perplexity")

        return Evaluation(f"{len(ids)} windows of {self.window} tokens from {self._described(self.splits.evaluation)}", score)
