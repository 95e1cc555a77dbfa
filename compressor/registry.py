"""Names to classes: one table, loaded on first use; other packages add theirs through entry points.

A third-party package registers with, for example,

    [project.entry-points."compressor.passes"]
    my-pass = "my_package.my_pass:MyPass"
"""

import difflib
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from compressor.errors import RecipeError

_BUILT_IN: dict[str, dict[str, str]] = {
    # In the order in which a pipeline made of flags runs them.
    "passes": {
        "depth": "compressor.passes.depth:Depth",
        "channels": "compressor.passes.channels:Channels",
        "sparsify": "compressor.passes.sparsify:Sparsify",
        "recover": "compressor.passes.recover:Recover",
        "quantize": "compressor.passes.quantize:Quantize",
    },
    "backends": {
        "onnxruntime": "compressor.backends.onnxruntime:OnnxRuntime",
        "tensorrt": "compressor.backends.tensorrt:TensorRT",
        "tensorrt-rtx": "compressor.backends.tensorrt:TensorRTRTX",
    },
    # Asked in this order; the first that says `accepts(name)` opens the model.
    "sources": {
        "zoo": "compressor.models.zoo_source:ZooSource",
        "python": "compressor.models.python:PythonSource",
        "hub": "compressor.models.hub:HubSource",
    },
    # By task: what turns text into tokens, made of an artifact's folder.
    "vocabularies": {"text-generation": "compressor.models.vocabulary:Vocabulary"},
}
_ALIASES = {("backends", "ort"): "onnxruntime"}
_ONE = {"passes": "pass", "backends": "backend", "sources": "source", "vocabularies": "vocabulary"}


@cache
def names(kind: str) -> dict[str, str]:
    """Every known name of a kind ("passes", "backends", "sources") -> "module:Class"."""
    table = dict(_BUILT_IN[kind])
    for entry in entry_points(group=f"compressor.{kind}"):
        if entry.name in table and table[entry.name] != entry.value:
            raise RecipeError(
                f"two packages register the {_ONE[kind]} {entry.name!r}",
                found=f"{table[entry.name]} and {entry.value}",
                hint="uninstall one of them",
            )
        table[entry.name] = entry.value
    return table


def load(kind: str, name: str) -> Any:
    """The class behind a name. Raises RecipeError naming the nearest known name."""
    table = names(kind)
    name = _ALIASES.get((kind, name), name)
    if name not in table:
        raise unknown(_ONE[kind], name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def unknown(what: str, name: str, known: Iterable[str]) -> RecipeError:
    """The error for a name nobody knows, with the nearest one that somebody does."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return RecipeError(
        f"unknown {what} {name!r}",
        found=f"known: {', '.join(known)}",
        hint=near[0] if near else None,
    )
