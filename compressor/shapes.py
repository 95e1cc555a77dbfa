"""How long the axes may be that vary: least, usual and most for each symbol (`batch`, `sequence`).

An engine is fast at the usual lengths and refuses what lies outside. A recipe names what it cares about,
`batch=1:32:64`, or `batch=32` for up to 32 and usually so; the rest follows from the workloads that are timed.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from compressor.errors import RecipeError
from compressor.graph import Feeds, Graph

Range = tuple[int, int, int]  # least, usual, most
BATCH_OF_TEXTS, BATCH = 8, 32

_HINT = "batch=1:8:32 for least, usual and most, or batch=8 for up to 8"


def parse_shapes(texts: Iterable[str]) -> dict[str, Range]:
    """`SYMBOL=LEAST:USUAL:MOST` or `SYMBOL=MOST`, by symbol. Raises RecipeError."""
    found = {}
    for text in texts:
        match = re.fullmatch(r"\s*([\w.-]+)\s*=\s*(?:(\d+)\s*:\s*(\d+)\s*:\s*)?(\d+)\s*", text, re.ASCII)
        if not match:
            raise RecipeError(f"a shape cannot be {text!r}", hint=_HINT)
        symbol, most = match[1], int(match[4])
        least, usual = (int(match[2]), int(match[3])) if match[2] else (_least(symbol), most)
        if not _least(symbol) <= least <= usual <= most:
            raise RecipeError(f"a shape cannot be {text!r}", found="lengths that do not rise", hint=_HINT)
        found[symbol] = (least, usual, most)
    return found


def choose_shapes(
    graph: Graph, workloads: Mapping[str, Feeds], window: int, asked: Mapping[str, Range]
) -> dict[str, Range]:
    """A range for every symbol of the graph's inputs: as asked, else around the first workload.

    `total_NAME` is `past_NAME` plus `NAME`, whatever these are. Raises RecipeError when a symbol is unknown, or when
    what is timed and scored does not fit; batches may be cut, so they always fit.
    """
    seen = {name: _lengths(graph, feeds) for name, feeds in workloads.items()}
    symbols = list(dict.fromkeys(symbol for port in graph.inputs for symbol in port.dynamic.values()))
    if unknown := sorted(set(asked) - set(symbols)):
        raise RecipeError(
            f"no axis of this model is called {unknown[0]!r}", found=", ".join(symbols) or "no axis that varies"
        )
    found = {s: asked[s] if s in asked else _around(s, list(seen.values()), symbols, window) for s in symbols}
    for symbol in symbols:
        part = symbol.removeprefix("total_")
        if part != symbol and {part, f"past_{part}"} <= found.keys():
            new, past = found[part], found[f"past_{part}"]
            found[symbol] = (new[0] + past[0], new[1] + past[1], new[2] + past[2])
    _check_fit(seen | ({"a scored window": {"sequence": window}} if "sequence" in symbols else {}), found)
    return found


def _check_fit(seen: Mapping[str, Mapping[str, int]], ranges: Mapping[str, Range]) -> None:
    for name, lengths in seen.items():
        for symbol, length in lengths.items():
            least, _, most = ranges[symbol]
            if symbol != "batch" and not least <= length <= most:
                raise RecipeError(
                    f"{name} does not fit the shapes",
                    found=f"{symbol} {length}, where {least} to {most} is asked for",
                    hint=f"--shape {symbol}={min(least, length)}:{max(length, least)}:{max(length, most)}, or --window",
                )


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


def _least(symbol: str) -> int:
    return 0 if symbol.startswith("past_") else 1


def _around(symbol: str, seen: list[dict[str, int]], symbols: list[str], window: int) -> Range:
    lengths = [one[symbol] for one in seen if symbol in one] or [1]
    beyond = {"batch": BATCH_OF_TEXTS if "sequence" in symbols else BATCH, "sequence": window, "past_sequence": window}
    return _least(symbol), lengths[0], max(*lengths, 1, beyond.get(symbol, 1))
