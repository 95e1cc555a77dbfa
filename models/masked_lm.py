"""Encoders over text, and masked language models, which are scored by the perplexity of masked tokens."""

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
from compressor.models.task import IGNORED, class_loss, perplexity
from compressor.models.tokens import context_length, load_tokenizer, windows
from compressor.source import Evaluation, Score, Training

MASKED_SHARE = 0.15  # as BERT was trained
BATCH = 8


class Encoder(Pretrained):
    """What encoders share: `(input_ids, attention_mask, token_type_ids) -> logits`, as far as the model takes them."""

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.where, self.name, self.options)

    def processor(self) -> Any:
        return self.tokenizer

    @cached_property
    def _names(self) -> list[str]:
        accepted = inspect.signature(type(self.model).forward).parameters
        # GPT-2 takes segment numbers for words and adds their embeddings: only a table of their own is fed.
        has_types = bool(getattr(self.model.config, "type_vocab_size", 0))
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if has_types else ()))
        return [name for name in names if name in accepted]

    def inputs(self) -> tuple[Port, ...]:
        return tuple(Port(name, {0: "batch", 1: "sequence"}) for name in self._names)

    def example(self) -> Feeds:
        mask = torch.ones(2, 6, dtype=torch.long)
        mask[0, 4:] = 0  # padded, or the mask is pruned from the graph
        return self.feeds(self._random_ids(2, 6), mask)

    def _random_ids(self, batch: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.model.config.get_text_config().vocab_size, (batch, length), generator=generator)

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
        return min(self.options.window, context_length(self.model))

    def workloads(self) -> Mapping[str, Feeds]:
        length = min(128, self.window)
        return {f"sequence of {length}": self.feeds(self._random_ids(1, length))}


class MaskedLM(Encoder):
    """BERT and its kin."""

    task = "fill-mask"
    data_kind = "text"

    def outputs(self) -> tuple[Port, ...]:
        return (Port("logits", {0: "batch", 1: "sequence"}),)

    def calibration(self, n: int) -> Sequence[Feeds]:
        ids = windows(self.splits.calibration, self.tokenizer, self.window, n, self.options.seed)
        return [self.feeds(batch) for batch in ids.split(BATCH)]

    @property
    def _mask_id(self) -> int:
        if self.tokenizer.mask_token_id is None:
            raise SourceError(
                f"the tokenizer of {self.name} has no mask token",
                found="mask_token is not set",
                hint="tokenizer.mask_token = ..., then save_pretrained",
            )
        return self.tokenizer.mask_token_id

    def training(self, n: int | None = None) -> Training:
        ids = windows(self.splits.calibration, self.tokenizer, self.window, n, self.options.seed)
        mask_id = self._mask_id

        def batch(rows: Sequence[int], seed: int) -> tuple[Feeds, Tensor]:
            hidden = self._hidden(ids[rows], seed)
            return self.feeds(ids[rows].masked_fill(hidden, mask_id)), ids[rows].masked_fill(~hidden, IGNORED)

        what = f"{len(ids)} windows of {self.window} tokens, {MASKED_SHARE:.0%} masked, from"
        return Training(len(ids), f"{what} {self.calibration_description}", batch, class_loss)

    def evaluation(self, n: int) -> Evaluation | None:
        if self.splits.evaluation is None:
            return None
        mask_id = self._mask_id
        ids = windows(self.splits.evaluation, self.tokenizer, self.window, n, self.options.seed)
        hidden = self._hidden(ids, self.options.seed)
        unit = f"windows of {self.window} tokens, {MASKED_SHARE:.0%} masked"

        def score(run: Run) -> Score:
            losses: list[float] = []
            for target, mask in zip(ids.split(BATCH), hidden.split(BATCH), strict=True):
                logits = run(self.feeds(target.masked_fill(mask, mask_id)))["logits"].float()
                rows = zip(logits, target, mask, strict=True)
                losses += [F.cross_entropy(row[at], wanted[at]).item() for row, wanted, at in rows]
            return perplexity(losses, unit, "masked perplexity")

        return Evaluation(f"{len(ids)} {unit}, from {self.described(self.splits.evaluation)}", score)

    def _hidden(self, ids: Tensor, seed: int) -> Tensor:
        """Which tokens are masked (n, window): never a special one, and at least one in each window."""
        noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
        noise[torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))] = 1
        return (noise < MASKED_SHARE) | (noise == noise.min(dim=1, keepdim=True).values)
