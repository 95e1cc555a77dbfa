"""Inputs for any ONNX file, from what it says of its inputs: the same values each time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compressor import onnx_file
from compressor.commands.sampling import PAST, blank
from compressor.errors import RecipeError
from compressor.graph import Feeds

BATCH = "batch"
USUAL = 128  # along an axis whose name says that it is a sequence
FEWEST_TOKENS = 100  # of vocabularies that the file does not tell
Inputs = Mapping[str, tuple[Sequence[int | str], torch.dtype]]


@dataclass(frozen=True)
class Signature:
    """Inputs by name, with `batch` for the first axis where it varies; how many token ids there are to draw from."""

    inputs: Inputs
    vocabulary: int

    @property
    def is_language_model(self) -> bool:
        """Whether it takes tokens and a key-value cache."""
        return "input_ids" in self.inputs and any(name.startswith(PAST) for name in self.inputs)

    def empty_cache(self) -> dict[str, Tensor]:
        """Inputs of one call with nothing in the cache."""
        return blank(self.inputs)

    def prompt(self, length: int) -> list[int]:
        """Token ids drawn at random."""
        return torch.randint(self.vocabulary, (length,), generator=_generator()).tolist()

    def sample(self, batch: int, sizes: Mapping[str, int]) -> Feeds:
        """Inputs of one call. Raises RecipeError when nobody says how long an axis is."""
        generator = _generator()
        return {
            name: self._values(name, [self._size(name, size, batch, sizes) for size in shape], dtype, generator)
            for name, (shape, dtype) in self.inputs.items()
        }

    def _size(self, name: str, size: int | str, batch: int, sizes: Mapping[str, int]) -> int:
        if isinstance(size, int):
            return size
        if size in sizes:
            return sizes[size]
        if size == BATCH:
            return batch
        if "seq" in size or "length" in size:
            return USUAL
        raise RecipeError(f"how long is the axis {size!r} of {name}?", hint=f"--shape {size}=224")

    def _values(self, name: str, shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        if name.endswith("mask"):
            return torch.ones(shape, dtype=dtype)
        if name == "position_ids":
            return torch.arange(shape[-1], dtype=dtype).expand(shape).contiguous()
        most = self.vocabulary if name == "input_ids" else 1
        return torch.randint(most, shape, generator=generator).to(dtype)


def signature(file: Path) -> Signature:
    """What a file takes. Raises BackendError when it cannot be read."""
    inputs = {
        name: ([BATCH if axis == 0 and isinstance(size, str) else size for axis, size in enumerate(shape)], dtype)
        for name, (shape, dtype) in onnx_file.inputs(file).items()
    }
    return Signature(inputs, onnx_file.width(file) or FEWEST_TOKENS)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
