"""Text to windows of token ids."""

from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError, SourceError
from compressor.models.data import Records
from compressor.models.task import Options, spread


def load_tokenizer(where: str, name: str, options: Options) -> Any:
    """The checkpoint's tokenizer. Raises SourceError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=options.remote_code)
    except Exception as error:
        raise SourceError(
            f"{name} has no tokenizer that can be loaded",
            found=" ".join(str(error).split())[:200],
            hint="tokenizer.json beside config.json (tokenizer.save_pretrained)",
        ) from error


def context_length(config: Any) -> int:
    """Tokens a model can attend to; long where the configuration names no limit."""
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        length = getattr(config, key, None)
        if length:
            return int(length)
    return 1 << 20


def windows(records: Records, tokenizer: Any, length: int, n: int) -> Tensor:
    """n windows (or all there are) of consecutive tokens (n, length), spread evenly, none overlapping.

    Raises DataError when the text is shorter than one window.
    """
    ids = tokenizer(records.text(), add_special_tokens=False, verbose=False)["input_ids"]
    available = len(ids) // length
    if not available:
        raise DataError(
            f"the text is shorter than one window of {length} tokens",
            found=f"{len(ids)} tokens in {records.description}",
            hint=f"more text, or --window {max(len(ids), 2)}",
        )
    tokens = torch.tensor(ids[: available * length]).reshape(available, length)
    return tokens[spread(available, n)]
