"""Causal language models: one flat graph with a key-value cache serves calibration, scoring and deployment."""

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

PROMPT_LENGTHS = (16, 12, 8)


class CausalLM(Pretrained):
    """`(input_ids, attention_mask, position_ids, past...) -> (logits, present...)`, scored by perplexity."""

    task = "text-generation"
    data_kind = "text"

    # *** lowering ***

    @cached_property
    def _cache_shapes(self) -> list[tuple[int, int]]:
        """(heads, head size) of each cache tensor, key then value, layer by layer, as the model makes them."""
        with torch.no_grad():
            cache = self.model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True).past_key_values
        tensors = [tensor for layer in cache.layers for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))]
        if not tensors or any(tensor is None or tensor.ndim != 4 for tensor in tensors):
            raise SourceError(
                f"{self.name} keeps a state that is not a key-value cache",
                found=", ".join(sorted({type(layer).__name__ for layer in cache.layers})),
                hint="a decoder with plain attention",
            )
        return [(tensor.shape[1], tensor.shape[3]) for tensor in tensors]

    @cached_property
    def _takes_positions(self) -> bool:
        return "position_ids" in inspect.signature(type(self.model).forward).parameters

    def _cache_names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(self._cache_shapes))]

    def inputs(self) -> tuple[Port, ...]:
        tokens = {0: "batch", 1: "sequence"}
        ports = [Port("input_ids", tokens), Port("attention_mask", {0: "batch", 1: "total_sequence"})]
        if self._takes_positions:
            ports.append(Port("position_ids", tokens))
        cache = {0: "batch", 2: "past_sequence"}
        return (*ports, *(Port(name, cache) for name in self._cache_names("past_key_values")))

    def outputs(self) -> tuple[Port, ...]:
        cache = {0: "batch", 2: "total_sequence"}
        return (
            Port("logits", {0: "batch", 1: "sequence"}),
            *(Port(name, cache) for name in self._cache_names("present")),
        )

    def example(self) -> Feeds:
        generator = torch.Generator().manual_seed(0)
        mask = torch.ones(2, 8, dtype=torch.long)
        mask[0, :2] = 0  # padded, or the mask is pruned from the graph
        ids = torch.randint(self.model.config.vocab_size, (2, 3), generator=generator)
        feeds = {"input_ids": ids, "attention_mask": mask}
        if self._takes_positions:
            feeds["position_ids"] = _positions(mask)[:, 5:]
        return feeds | self._cache(2, 5, generator)

    def _cache(self, batch: int, length: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        generator = generator or torch.Generator().manual_seed(0)
        return {
            name: torch.randn(batch, heads, length, size, generator=generator)
            for name, (heads, size) in zip(self._cache_names("past_key_values"), self._cache_shapes, strict=True)
        }

    def forward(self, model: Any, feeds: Feeds) -> tuple[Tensor, ...]:
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=model.config)
        past = [feeds[name] for name in self._cache_names("past_key_values")]
        for layer, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(key, value, layer)
        tokens = {name: x for name, x in feeds.items() if not name.startswith("past_key_values")}
        result = model(**tokens, past_key_values=cache, use_cache=True)
        present = [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)

    def _feeds(self, ids: Tensor, mask: Tensor | None = None, past: Mapping[str, Tensor] | None = None) -> Feeds:
        """One call: new tokens ids (B, S), mask over past and new (B, T), and the cache so far (empty when None)."""
        mask = torch.ones_like(ids) if mask is None else mask
        feeds = {"input_ids": ids, "attention_mask": mask}
        if self._takes_positions:
            feeds["position_ids"] = _positions(mask)[:, -ids.shape[1] :].contiguous()
        return feeds | dict(past or self._cache(ids.shape[0], 0))

    # *** data ***

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.where, self.name, self.options)

    def processor(self) -> Any:
        return self.tokenizer

    @property
    def window(self) -> int:
        return min(self.options.window, context_length(self.model.config))

    @property
    def _batch_size(self) -> int:
        # Logits of one batch stay near 200 MB.
        return max(1, min(8, 50_000_000 // (self.window * self.model.config.vocab_size)))

    def calibration(self, n: int) -> Sequence[Feeds]:
        ids = windows(self.splits.calibration, self.tokenizer, self.window, n)
        return [self._feeds(batch) for batch in batches(ids, 8)]

    def evaluation(self, n: int) -> Evaluation | None:
        if self.splits.evaluation is None:
            return None
        ids = windows(self.splits.evaluation, self.tokenizer, self.window, n)
        described = f"{len(ids)} windows of {self.window} tokens from {self._described(self.splits.evaluation)}"

        def score(run: Run) -> Score:
            losses = [loss for batch in batches(ids, self._batch_size) for loss in _losses(run(self._feeds(batch))["logits"], batch)]
            return perplexity(losses, f"windows of {self.window} tokens")

        return Evaluation(described, score)

    def workloads(self) -> Mapping[str, Feeds]:
        length = min(128, self.window // 2)
        ids = windows(self.splits.calibration, self.tokenizer, length + 1, 1)
        mask = torch.ones(1, length + 1, dtype=torch.long)
        return {
            f"prefill {length}": self._feeds(ids[:, :length]),
            f"decode at {length}": self._feeds(ids[:, length:], mask, self._cache(1, length)),
        }

    def generate(self, run: Run, n_tokens: int) -> Tensor:
        """Greedy continuations (prompts, n_tokens) of left-padded prompts from the evaluation text."""
        records = self.splits.evaluation or self.splits.calibration
        room = context_length(self.model.config) - max(PROMPT_LENGTHS)
        ids = windows(records, self.tokenizer, max(PROMPT_LENGTHS), len(PROMPT_LENGTHS)).clone()
        mask = torch.ones_like(ids)
        for row, length in zip(range(len(ids)), PROMPT_LENGTHS, strict=False):
            mask[row, : ids.shape[1] - length] = 0
        return greedy(run, self._feeds, ids, mask, min(n_tokens, room))


def greedy(run: Run, feeds: Any, ids: Tensor, mask: Tensor, n_tokens: int) -> Tensor:
    """The n_tokens most likely tokens after each prompt ids (B, S), one call per token, cache carried along."""
    past, made = None, []
    for _ in range(n_tokens):
        out = run(feeds(ids, mask, past))
        ids = out["logits"][:, -1].float().argmax(-1, keepdim=True)  # (B, 1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        past = {name.replace("present", "past_key_values"): x for name, x in out.items() if name != "logits"}
        made.append(ids)
    return torch.cat(made, dim=1)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token, padding not counted: (B, T)."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _losses(logits: Tensor, ids: Tensor) -> list[float]:
    """Mean negative log-likelihood in nats of each window's tokens after the first."""
    return [F.cross_entropy(row[:-1].float(), target[1:]).item() for row, target in zip(logits, ids, strict=True)]
