"""What TensorRT says about sparse kernels: in the builder's log, and in the engine inspector's JSON.

Three signs, none enough alone. *Eligible* (log): the weights fit the pattern. *Chosen* (log): a sparse kernel won. A
layer's tactic name (inspector): the kernel itself. `HasSparseWeights` in the JSON repeats only the first.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.engine import Layer

# From 10 on, round brackets; the names follow at VERBOSE alone.
_FOUND = re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics(?::\s*(.*))?")
_CHOSE = re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics(?::\s*(.*))?")
# Up to 8.6, names without a count.
_OLD_FOUND = re.compile(r"\(Sparsity\) Layers eligible for sparse math:\s*(.*)")
_OLD_CHOSE = re.compile(r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:\s*(.*)")

_SPARSE_TACTIC = re.compile(r"spars|spmma|sptensor|sp_?gemm", re.IGNORECASE)


@dataclass(frozen=True)
class Sparsity:
    """What the log counts; None when it has no such line, which is not zero. Names where it lists them."""

    eligible: int | None = None
    chosen: int | None = None
    eligible_layers: tuple[str, ...] = ()
    chosen_layers: tuple[str, ...] = ()


def read_log(lines: Iterable[str]) -> Sparsity:
    """The last count of each kind: the builder prints a pair for every round of choosing kernels."""
    eligible: tuple[int | None, tuple[str, ...]] = (None, ())
    chosen = eligible
    for line in lines:
        eligible = _count(line, _FOUND, _OLD_FOUND) or eligible
        chosen = _count(line, _CHOSE, _OLD_CHOSE) or chosen
    return Sparsity(eligible[0], chosen[0], eligible[1], chosen[1])


def _count(line: str, counted: re.Pattern[str], listed: re.Pattern[str]) -> tuple[int, tuple[str, ...]] | None:
    if match := counted.search(line):
        return int(match[1]), _names(match[2])
    if match := listed.search(line):
        return len(_names(match[1])), _names(match[1])
    return None


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def read_layers(text: str, sites: Mapping[str, str]) -> tuple[Layer, ...]:
    """The layers that the inspector lists, each with its site. sites: layer name in the ONNX file -> site.

    Both forms are read: objects with Name and TacticName (DETAILED), and bare names, whose kernels stay unknown.
    """
    return tuple(_layer(entry, sites) for entry in json.loads(text).get("Layers", []))


def _layer(entry: Any, sites: Mapping[str, str]) -> Layer:
    if not isinstance(entry, dict):
        return Layer(str(entry), "", False, _site(str(entry), sites))
    name, tactic = entry.get("Name", ""), entry.get("TacticName") or ""
    told = f"{name} {entry.get('Metadata', '')}"
    return Layer(name, tactic, bool(_SPARSE_TACTIC.search(tactic)), _site(told, sites))


def _site(text: str, sites: Mapping[str, str]) -> str:
    """The site with the longest name that stands whole in the text: `h.1` does not in `h.10`."""
    found = [name for name in sites if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text)]
    return sites[max(found, key=len)] if found else ""
