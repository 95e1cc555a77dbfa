"""The model before it was quantized: what back-off begins again with, and what codes alone are held against."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from compressor.graph import Feeds, Graph, Run
from compressor.proof.parity import difference
from compressor.proof.report import Unquantized, score_drop
from compressor.recipe import Recipe
from compressor.source import Score

PASS = "quantize"


@dataclass
class Before:
    """An observer that keeps a copy of the graph as it is after so many passes; None when it is of no use."""

    passes: int | None
    graph: Graph | None = None

    def __call__(self, number: int, name: str, graph: Graph) -> None:
        if number == self.passes:
            self.graph = graph.copy()


def before(recipe: Recipe) -> Before:
    """Of the passes before quantize: where there are any, or where back-off may have to begin again from there."""
    names = [one.name for one in recipe.passes]
    at = names.index(PASS) if PASS in names else 0
    return Before(at if at or (recipe.back_off and names == [PASS]) else None)


def in_floats(graph: Graph) -> Graph:
    """The same weights without codes and roundings, for a runtime to be timed on: it takes no new export."""
    made = copy.copy(graph)
    made.grids, made.points = {}, []
    return made


def beside(
    graph: Graph, artifact: Run, score: Score | None, scored: Callable[[Run], Score | None], workloads: Iterable[Feeds]
) -> Unquantized:
    """The artifact beside the graph from before it was quantized, in torch.

    score: of the artifact. scored: scores a run on the same samples.
    """
    gap = max(difference(graph.run, artifact, feeds) for feeds in workloads)
    own = scored(graph.run) if score else None
    if own is None or score is None:
        return Unquantized(gap)
    return Unquantized(gap, own, *score_drop(own, score))
