"""The models of the zoo as graphs, captured once for all tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from compressor.graph import Graph
from compressor.models.zoo_source import ZooSource
from compressor.source import Options, Source

WINDOW = 64


@cache
def lowered(name: str) -> tuple[Source, Graph]:
    """The source and its graph. Whoever writes weights does so within `restored`."""
    source = ZooSource.open(name, Options(window=WINDOW))
    return source, source.lower()


@contextmanager
def restored(graph: Graph) -> Iterator[None]:
    """Afterwards every weight is as it was."""
    before = {name: x.detach().clone() for name, x in graph.module.named_parameters()}
    try:
        yield
    finally:
        for name, x in graph.module.named_parameters():
            x.data.copy_(before[name])
