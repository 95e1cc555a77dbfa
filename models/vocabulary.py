"""What a causal language model's folder says about text: its tokenizer, the tokens that end a text, its context."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.models.tokens import around, configured_length, load_tokenizer
from compressor.source import Options


class Vocabulary:
    """The tokenizer of a folder in the Hugging Face layout; weights are not needed. Code in the folder is never run."""

    def __init__(self, folder: Path):
        self._tokenizer = load_tokenizer(str(folder), str(folder), Options())
        self._before, _ = around(self._tokenizer)
        self.ends = frozenset(_ends(folder, self._tokenizer))
        self.longest = configured_length(_config(folder))

    def encode(self, text: str) -> list[int]:
        """The tokens of a text that goes on: with what begins a text, without what ends it."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*self._before, *ids] if ids else []

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _ends(folder: Path, tokenizer: Any) -> list[int]:
    from transformers import GenerationConfig

    named: Any = None
    if (folder / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(str(folder)).eos_token_id
    named = tokenizer.eos_token_id if named is None else named
    return [] if named is None else [named] if isinstance(named, int) else list(named)


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(folder))
