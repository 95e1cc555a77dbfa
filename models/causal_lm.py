"""Causal language models: one flat graph with a key-value cache serves calibration, scoring and deployment."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import SourceError
from compressor.graph import Feeds, Port, Run
from compressor.models.pretrained import Pretrained
from compressor.models.records import Records, short
from compressor.models.task import next_token_loss, perplexity
from compressor.models.tokens import context_length, load_tokenizer, windows
from compressor.source import Answer, Evaluation, Score, Showcase, Training

PROMPT_LENGTHS = (16, 12, 8)
SHOWN, SHOWN_TOKENS = 3, 72
BATCH = 8
MOST_LOGITS = 50_000_000  # 200 MB in float32


class CausalLM(Pretrained):
    """`(input_ids, attention_mask, position_ids, past...) -> (logits, present...)`, scored by perplexity."""

    task = "text-generation"
    data_kind = "text"

    # *** lowering ***

    @cached_property
    def _arguments(self) -> Mapping[str, Any]:
        return inspect.signature(type(self.model).forward).parameters

    @cached_property
    def takes_positions(self) -> bool:
        return "position_ids" in self._arguments

    @property
    def _vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    def _new_cache(self) -> dict[str, Any]:
        """An empty cache, under the name that the model takes it by.

        Made without the model's configuration, which would crop the layers with a sliding window: whole layers give the
        same logits, since the mask has the window as well, and every layer keeps the same length.
        """
        from transformers import DynamicCache

        return {"cache" if "cache" in self._arguments else "past_key_values": DynamicCache()}

    @cached_property
    def _cache_shapes(self) -> list[tuple[int, int]]:
        """(heads, head size) of each cache tensor, key then value, layer by layer, as the model makes them."""
        [(name, cache)] = self._new_cache().items()
        try:
            with torch.no_grad():
                self.model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True, **{name: cache})
            shapes = [(x.shape[1], x.shape[3]) for x in _keys_and_values(cache)]
        except Exception as error:
            raise self._no_cache(f"{type(error).__name__}: {short(error)}") from error
        if not shapes:
            raise self._no_cache("no keys and values after a call")
        return shapes

    def _no_cache(self, found: str) -> SourceError:
        what = f"{self.name} ({type(self.model).__name__}) does not keep its state in a key-value cache"
        return SourceError(what, found=found, hint="a decoder with plain attention")

    def _cache_names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(self._cache_shapes))]

    def inputs(self) -> tuple[Port, ...]:
        tokens = {0: "batch", 1: "sequence"}
        ports = [Port("input_ids", tokens), Port("attention_mask", {0: "batch", 1: "total_sequence"})]
        if self.takes_positions:
            ports.append(Port("position_ids", tokens))
        cache = {0: "batch", 2: "past_sequence"}
        return (*ports, *(Port(name, cache, is_state=True) for name in self._cache_names("past_key_values")))

    def outputs(self) -> tuple[Port, ...]:
        cache = {0: "batch", 2: "total_sequence"}
        return (
            Port("logits", {0: "batch", 1: "sequence"}),
            *(Port(name, cache, is_state=True) for name in self._cache_names("present")),
        )

    def example(self) -> Feeds:
        mask = torch.ones(2, 8, dtype=torch.long)
        mask[0, :2] = 0  # padded, or the mask is pruned from the graph
        ids = torch.randint(self._vocabulary, (2, 3), generator=torch.Generator().manual_seed(0))
        return self.feeds(ids, mask, self._past(2, 5))

    def forward(self, model: Any, feeds: Feeds) -> tuple[Tensor, ...]:
        [(name, cache)] = self._new_cache().items()
        past = [feeds[name] for name in self._cache_names("past_key_values") if name in feeds]  # layers may have gone
        cache.layers += [_layer(key, value) for key, value in zip(past[::2], past[1::2], strict=True)]
        tokens = {name: x for name, x in feeds.items() if not name.startswith("past_key_values")}
        logits = model(**tokens, use_cache=True, **{name: cache}).logits
        return (logits, *_keys_and_values(cache))

    # *** calling ***

    def feeds(self, ids: Tensor, mask: Tensor | None = None, past: Feeds | None = None) -> Feeds:
        """One call: new tokens (B, S), mask over past and new (B, T), and the cache so far, empty when None."""
        mask = torch.ones_like(ids) if mask is None else mask
        feeds = {"input_ids": ids, "attention_mask": mask}
        if self.takes_positions:
            # Padding is not counted.
            feeds["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :].contiguous()
        return feeds | dict(past or self._past(ids.shape[0], 0))

    def _past(self, batch: int, length: int) -> dict[str, Tensor]:
        """A cache of noise, which times and traces as any other."""
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(batch, heads, length, size, generator=generator)
            for name, (heads, size) in zip(self._cache_names("past_key_values"), self._cache_shapes, strict=True)
        }

    # *** data ***

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.where, self.name, self.options)

    def processor(self) -> Any:
        return self.tokenizer

    @property
    def window(self) -> int:
        return min(self.options.window, context_length(self.model))

    def _windows(self, records: Records, length: int, n: int | None) -> Tensor:
        return windows(records, self.tokenizer, length, n, self.options.seed)

    def calibration(self, n: int) -> Sequence[Feeds]:
        return [self.feeds(ids) for ids in self._windows(self.splits.calibration, self.window, n).split(BATCH)]

    def training(self, n: int | None = None) -> Training:
        ids = self._windows(self.splits.calibration, self.window, n)
        return Training(
            len(ids),
            f"{len(ids)} windows of {self.window} tokens from {self.calibration_description}",
            lambda rows, seed: (self.feeds(ids[rows]), ids[rows]),
            next_token_loss,
            at_once=self._at_once,
        )

    @property
    def _at_once(self) -> int:
        return max(1, MOST_LOGITS // (self.window * self._vocabulary))

    def evaluation(self, n: int) -> Evaluation | None:
        if self.splits.evaluation is None:
            return None
        ids, unit = self._windows(self.splits.evaluation, self.window, n), f"windows of {self.window} tokens"
        size = min(BATCH, self._at_once)

        def score(run: Run) -> Score:
            losses = [loss for batch in ids.split(size) for loss in _losses(run(self.feeds(batch))["logits"], batch)]
            return perplexity(losses, unit)

        return Evaluation(f"{len(ids)} {unit} from {self.described(self.splits.evaluation)}", score)

    def workloads(self) -> Mapping[str, Feeds]:
        length = min(128, self.window // 2)
        ids = self._windows(self.splits.calibration, length + 1, 1)
        mask = torch.ones(1, length + 1, dtype=torch.long)
        return {
            f"prefill {length}": self.feeds(ids[:, :length]),
            f"decode at {length}": self.feeds(ids[:, length:], mask, self._past(1, length)),
        }

    def generate(self, run: Run, n_tokens: int) -> Tensor:
        """Greedy continuations (prompts, n_tokens) of left-padded prompts from the held-out text."""
        longest = max(PROMPT_LENGTHS)
        ids = self._windows(self.splits.evaluation or self.splits.calibration, longest, len(PROMPT_LENGTHS))
        mask = torch.ones_like(ids)
        for row, length in zip(mask, PROMPT_LENGTHS, strict=False):
            row[: longest - length] = 0
        return greedy(run, self.feeds, ids, mask, min(n_tokens, context_length(self.model) - longest))

    def showcase(self) -> Showcase:
        """Greedy continuations of the beginnings of a few windows of held-out text."""
        length = min(SHOWN_TOKENS, self.window)
        ids = self._windows(self.splits.evaluation or self.splits.calibration, length, SHOWN)
        prompts, rest = ids.tensor_split([length // 3], dim=1)

        def decoded(rows: Tensor) -> tuple[str, ...]:
            return tuple(self.tokenizer.batch_decode(rows, skip_special_tokens=True))

        def answers(run: Run) -> list[Answer]:
            made = greedy(run, self.feeds, prompts, torch.ones_like(prompts), rest.shape[1])
            return [Answer(text) for text in decoded(made)]

        return Showcase("text", decoded(prompts), decoded(rest), answers)


def greedy(run: Run, feeds: Callable[..., Feeds], ids: Tensor, mask: Tensor, n_tokens: int) -> Tensor:
    """The most likely tokens (B, n_tokens) after prompts ids (B, S), one call per token, the cache carried along."""
    past, made = None, []
    for _ in range(n_tokens):
        out = run(feeds(ids, mask, past))
        ids = out["logits"][:, -1].float().argmax(-1, keepdim=True)  # (B, 1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        past = {name.replace("present", "past_key_values"): x for name, x in out.items() if name != "logits"}
        made.append(ids)
    return torch.cat(made, dim=1)


def _layer(key: Tensor, value: Tensor) -> Any:
    """A layer of a cache that holds this. `cache.update` would begin with an empty constant, and trace an operator that
    works in place on it, which makes capturing take twice as long."""
    from transformers.cache_utils import DynamicLayer

    layer = DynamicLayer()
    layer.keys, layer.values, layer.device, layer.is_initialized = key, value, key.device, True
    return layer


def _keys_and_values(cache: Any) -> list[Tensor]:
    return [x for layer in cache.layers for x in (layer.keys, layer.values)]


def _losses(logits: Tensor, ids: Tensor) -> list[float]:
    """Mean negative log-likelihood in nats of each window's tokens after the first."""
    return [F.cross_entropy(row[:-1].float(), target[1:]).item() for row, target in zip(logits, ids, strict=True)]
