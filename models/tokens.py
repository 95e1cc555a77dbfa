"""Text to windows of token ids."""

from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError, SourceError
from compressor.models.records import Records, short
from compressor.models.task import Options, choose

MOST_CHARACTERS = 64  # read per token that is wanted: far more than a token spans


def load_tokenizer(where: str, name: str, options: Options) -> Any:
    """The checkpoint's tokenizer. Raises SourceError when there is none."""
    from transformers import AutoTokenizer

    what, hint = f"{name} has no tokenizer that can be loaded", "tokenizer.json beside config.json (save_pretrained)"
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=options.remote_code)
    except Exception as error:
        raise SourceError(what, found=short(error), hint=hint) from error
    # Where there are no files, transformers makes a tokenizer that knows its special tokens and no others.
    if tokenizer.get_vocab().keys() <= {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}:
        raise SourceError(what, found="no vocabulary among its files", hint=hint)
    return tokenizer


def context_length(model: Any) -> int:
    """Tokens a model can attend to; long where the configuration names no limit."""
    # RoBERTa and its kin count positions from after the padding index.
    offsets = (
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    )
    return configured_length(model.config) - next(offsets, 0)


def configured_length(config: Any) -> int:
    """Positions that a configuration names; many where it names no limit."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    text = config.get_text_config()
    return next((int(found) for name in names if (found := getattr(text, name, None))), 1 << 20)


def windows(records: Records, tokenizer: Any, length: int, n: int | None, seed: int) -> Tensor:
    """n windows (or all there are, as for None) of consecutive tokens (n, length), in order, none overlapping.

    Each begins and ends with the special tokens that the tokenizer puts around a text (BERT's [CLS] and [SEP], Gemma's
    <bos>). Raises DataError when the text is shorter than one window.
    """
    before, after = around(tokenizer)
    inner = length - len(before) - len(after)
    text = records.items[0]["text"]
    text = text if n is None else _thinned(text, n, MOST_CHARACTERS * length)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    available = len(ids) // inner if inner > 0 else 0
    if not available:
        raise DataError(
            f"the text is shorter than one window of {length} tokens",
            found=f"{len(ids)} tokens in {records.description}",
            hint="more text, or a shorter --window",
        )
    rows = [before + ids[i * inner : (i + 1) * inner] + after for i in choose(available, n, seed)]
    return torch.tensor(rows)


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    body = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(body)] == body), 0)
    return whole[:start], whole[start + len(body) :]


def _thinned(text: str, n: int, size: int) -> str:
    """Of a long text, n stretches of that many characters, spread evenly: the rest need not be tokenized."""
    if len(text) <= n * size:
        return text
    return "".join(text[i * len(text) // n :][:size] for i in range(n))
