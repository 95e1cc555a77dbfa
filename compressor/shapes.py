"""How long the axes may be that vary: least, usual and most for each symbol (`batch`, `sequence`).

An engine is fast at the usual lengths and refuses what lies outside. A recipe names what it cares about,
`batch=1:32:64` or `sequence=128`; the rest follows from the workloads that are timed.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from compressor.errors import RecipeError
from compressor.graph import Feeds, Graph

Range = tuple[int, int, int]  # least, usual, most
BATCH_OF_TEXTS, BATCH = 8, 32

_HINT = "batch=1:8:32 for least, usual and most, or batch=8 for one length"


def parse_shapes(texts: Iterable[str]) -> dict[str, Range]:
    """`SYMBOL=LEAST:USUAL:MOST` or `SYMBOL=LENGTH`, by symbol. Raises RecipeError."""
    found = {}
    for text in texts:
        match = re.fullmatch(r"\s*([\w.-]+)\s*=\s*(\d+)(?:\s*:\s*(\d+)\s*:\s*(\d+))?\s*", text, re.ASCII)
        if not match:
            raise RecipeError(f"a shape cannot be {text!r}", hint=_HINT)
        least, usual, most = (int(match[i] or match[2]) for i in (2, 3, 4))
        if not least <= usual <= most or most == 0:
            raise RecipeError(f"a shape cannot be {text!r}", found="lengths that do not rise", hint=_HINT)
        found[match[1]] = (least, usual, most)
    return found


def choose_shapes(
    graph: Graph, workloads: Mapping[str, Feeds], window: int, asked: Mapping[str, Range]
) -> dict[str, Range]:
    """A range for every symbol of the graph's inputs: as asked, else around the first workload.

    `total_NAME` is `past_NAME` plus `NAME`, whatever these are. Raises RecipeError when a symbol is unknown.
    """
    seen = [_lengths(graph, feeds) for feeds in workloads.values()]
    symbols = list(dict.fromkeys(symbol for port in graph.inputs for symbol in port.dynamic.values()))
    if unknown := sorted(set(asked) - set(symbols)):
        raise RecipeError(
            f"no axis of this model is called {unknown[0]!r}", found=", ".join(symbols) or "no axis that varies"
        )
    found = {symbol: asked.get(symbol) or _around(symbol, seen, symbols, window) for symbol in symbols}
    for symbol in symbols:
        part = symbol.removeprefix("total_")
        if part != symbol and {part, f"past_{part}"} <= found.keys():
            new, past = found[part], found[f"past_{part}"]
            found[symbol] = (new[0] + past[0], new[1] + past[1], new[2] + past[2])
    return found


def usual_feeds(graph: Graph, feeds: Feeds, shapes: Mapping[str, Range]) -> Feeds:
    """The feeds, each axis that varies repeated or cut to its usual length."""
    ports = {port.name: port.dynamic for port in graph.inputs}
    return {name: _resized(x, {axis: shapes[s][1] for axis, s in ports[name].items()}) for name, x in feeds.items()}


def _resized(x: torch.Tensor, lengths: Mapping[int, int]) -> torch.Tensor:
    for axis, length in lengths.items():
        if x.shape[axis] == 0:
            x = x.new_zeros([length if at == axis else n for at, n in enumerate(x.shape)])
        else:
            x = x.index_select(axis, torch.arange(length) % x.shape[axis])
    return x.contiguous()


def _lengths(graph: Graph, feeds: Feeds) -> dict[str, int]:
    return {
        symbol: feeds[port.name].shape[axis]
        for port in graph.inputs
        if port.name in feeds
        for axis, symbol in port.dynamic.items()
    }


def _around(symbol: str, seen: list[dict[str, int]], symbols: list[str], window: int) -> Range:
    lengths = [one[symbol] for one in seen if symbol in one] or [1]
    least = 0 if symbol.startswith("past_") else 1
    beyond = {"batch": BATCH_OF_TEXTS if "sequence" in symbols else BATCH, "sequence": window, "past_sequence": window}
    return least, lengths[0], max(*lengths, least, beyond.get(symbol, 1))
