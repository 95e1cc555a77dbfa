"""Weights that are looked up and not contracted, embeddings that no head shares, in 8 bits: a scale for each row."""

from collections.abc import Sequence

import torch

from compressor.graph import Graph
from compressor.passes.grids import grid
from compressor.passes.rounding import nearest
from compressor.pipeline import is_named
from compressor.quantization import Grid, largest_code
from compressor.stored import stored

BITS = 8


def tables(graph: Graph, targets: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """The names of those that the globs name."""
    return [one.name for one in graph.orphans if one.is_table and is_named(one.name, targets, ignore)]


def round_table(graph: Graph, name: str) -> Grid:
    """Write a table (n, d), each row to the nearest of its grid; returns the grid.

    No kernel multiplies its codes, so they take all of the range.
    """
    x = stored(graph.module, name)
    W, largest = x.detach().float()[None], largest_code(BITS)  # (1, n, d)
    made = Grid(BITS, largest, grid(W, largest, 0))
    with torch.no_grad():
        x.copy_(nearest(W, made.spread(x.shape[1]), largest)[0])
    return made
