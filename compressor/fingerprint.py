"""Hashes of what a result depends on: the model, its data, the recipe, the versions, and our own code."""

import hashlib
import inspect
import json
import os
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from compressor.graph import Graph
from compressor.recipe import Recipe
from compressor.source import Source


@runtime_checkable
class Fingerprinted(Protocol):
    """What a source offers besides when its data can be told from other data; without it nothing is cached."""

    def digest(self) -> str:
        """A hash of the samples, and of how they become inputs."""


def digest(*parts: Any) -> str:
    """A hash of JSON values, bytes and tensors, in order; 64 hexadecimal digits."""
    hashed = hashlib.sha256()
    for part in parts:
        for chunk in _bytes(part):
            hashed.update(len(chunk).to_bytes(8, "little"))
            hashed.update(chunk)
    return hashed.hexdigest()


def model_digest(source: Source, graph: Graph) -> str | None:
    """A hash of a model as it was lowered, and of its data; None when the source cannot tell its data."""
    if not isinstance(source, Fingerprinted):
        return None
    module = graph.module
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return digest(source.digest(), graph.text(), *(part for pair in tensors for part in pair))


def score_key(model: str, recipe: Recipe, versions: Mapping[str, str]) -> str:
    """The key of the dense model's score."""
    return digest("score", model, [recipe.window, recipe.samples, recipe.seed], dict(versions), own_code())


def point_key(model: str, recipe: Recipe, versions: Mapping[str, str]) -> str:
    """The key of what a recipe makes of a model, on this machine: times are kept, too."""
    settings = recipe.with_settings({"model": "", "data": None})  # by content, not by name
    code = [_code_of(type(one)) for one in recipe.passes]
    machine = [platform.node(), os.cpu_count(), torch.get_num_threads()]
    return digest("point", model, str(settings), code, machine, dict(versions), own_code())


@cache
def own_code() -> str:
    """A hash of this package's own source files: a version number stays the same while code is being written."""
    root = Path(__file__).parent
    files = [path for part in (".", "passes", "backends", "models") for path in sorted((root / part).glob("**/*.py"))]
    return digest(*(path.read_bytes() for path in files))


def _code_of(cls: type) -> str:
    """A hash of the file that defines a class; passes of other packages change without our version."""
    file = inspect.getsourcefile(cls)
    return digest(Path(file).read_bytes()) if file else cls.__qualname__


def _bytes(part: Any) -> Iterable[Any]:
    """What kind of thing it is, then its content."""
    if isinstance(part, bytes):
        return [b"bytes", part]
    if isinstance(part, Tensor):
        x = part.detach().cpu().contiguous()
        head = f"{x.dtype} {tuple(x.shape)}".encode()
        return [head, x.reshape(-1).view(torch.uint8).numpy().data] if x.numel() else [head]
    return [b"json", json.dumps(part, sort_keys=True, ensure_ascii=False).encode()]
