"""The zoo: small models, really trained, that ship with the package, each with its own held-out data."""

import difflib
from pathlib import Path

from compressor.errors import SourceError

_DESCRIPTIONS = {
    "tiny-gpt2": "GPT-2 of 0.96 M parameters on Python documentation: held-out perplexity 20.6 (best n-gram: 31.0)",
    "tiny-resnet": "ResNet of 0.18 M parameters on 8 x 8 handwritten digits: top-1 99.4 % on 500 held-out images",
}

NAMES: tuple[str, ...] = tuple(_DESCRIPTIONS)


def folder(name: str) -> Path:
    """The folder of a zoo model, in the Hugging Face layout. Raises SourceError naming the nearest known name."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise SourceError(f"no model {name!r} ships with Compressor", found=", ".join(NAMES), hint=near)
    return Path(__file__).parent / name


def describe() -> dict[str, str]:
    """One line about each model: what it is, and how good."""
    return dict(_DESCRIPTIONS)
