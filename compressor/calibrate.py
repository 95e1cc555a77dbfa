"""Statistics of what each site sees, segment after segment of the graph, each on the outputs of the pruned ones before.

A segment is the run of nodes that ends after the last site of a block (`transformer.h.3`). Every calibration batch is
run through a segment once to gather statistics; the caller then rewrites the segment's weights; every batch is run
through it once more, with the new weights, to make the next segment's inputs. At any time the statistics of one
segment and the live values at one cut are held, whatever the model's depth.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx

from compressor.graph import Feeds, Graph
from compressor.progress import Progress
from compressor.sites import WeightSite
from compressor.statistics import Statistics

ROWS_PER_COLUMN = 64
"""Rows sampled per column of a convolution. Neighbouring positions of an image repeat each other; past 64 rows a
column the solution no longer changes, and gathering every position would be most of the run time."""

Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Segment:
    """A run of nodes, the sites to rewrite once it has been seen, and the values that later segments read."""

    nodes: tuple[fx.Node, ...]
    sites: tuple[WeightSite, ...]
    live: frozenset[fx.Node]


def block_of(name: str) -> str:
    """The repeated block a parameter belongs to: its name up to the first number.

    `transformer.h.3.mlp.c_fc.weight` -> `transformer.h.3`; a name without a number is a block of its own.
    """
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: first + 1])


def segments(graph: Graph, sites: Sequence[WeightSite]) -> list[Segment]:
    """The graph cut after each block's last site, where the fewest values live on; what no site depends on is left out.

    A weight with several consumers is never cut apart: its statistics are the sum over all of them.
    """
    if not sites:
        return []
    index = {node: position for position, node in enumerate(graph.module.graph.nodes)}
    uses = sorted(((index[use.node], site) for site in sites for use in site.uses), key=lambda use: use[0])
    last_read = _last_read(sites, index)
    bounds = [-1, *_cuts(uses, index, last_read), uses[-1][0]]
    return [
        Segment(
            nodes=tuple(node for node in last_read if start < index[node] <= end),
            sites=tuple(dict.fromkeys(site for at, site in uses if start < at <= end)),
            live=frozenset(node for node, last in last_read.items() if index[node] <= end < last),
        )
        for start, end in pairwise(bounds)
    ]


def _last_read(sites: Sequence[WeightSite], index: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """Every value that a site depends on, in graph order, and the position of its last reader; weights are left out."""
    needed = _ancestors(use.activation for site in sites for use in site.uses)
    readers = needed | {use.node for site in sites for use in site.uses}
    return {
        node: max(index[user] for user in node.users if user in readers)
        for node in index
        if node in needed and node.op != "get_attr"
    }


def _cuts(uses: list[tuple[int, WeightSite]], index: dict[fx.Node, int], last_read: dict[fx.Node, int]) -> list[int]:
    """Between the last site of a block and the first of the next, the first position that the fewest values cross."""
    spans: dict[WeightSite, list[int]] = {}
    for at, site in uses:
        spans.setdefault(site, []).append(at)
    steps = [0] * len(index)
    for node, last in last_read.items():
        steps[index[node]] += 1
        steps[last] -= 1
    crossing = list(accumulate(steps))
    return [
        min(range(here, there), key=crossing.__getitem__)
        for (here, site), (there, following) in pairwise(uses)
        if block_of(site.name) != block_of(following.name) and not any(at[0] <= here < at[-1] for at in spans.values())
    ]


def calibrate(
    graph: Graph, sites: Sequence[WeightSite], batches: Sequence[Feeds], *, seed: int, progress: Progress
) -> Iterator[tuple[Segment, dict[WeightSite, Statistics]]]:
    """Yield each segment with its sites' statistics; write the sites' weights before asking for the next.

    The statistics are emptied when the next segment is asked for, so that those of one are held at a time.

    batches: inputs by name. seed: chooses the positions sampled from convolutions' inputs.
    """
    parts = segments(graph, sites)
    if not parts:
        return
    machine = _Machine(graph.module)
    generator = torch.Generator().manual_seed(seed)
    values = [_placed(graph, batch) for batch in batches]
    with progress.task("calibrating", total=(2 * len(parts) - 1) * len(batches)) as step:
        for part in parts:
            statistics = _statistics(machine, part, values, generator, step)
            yield part, statistics
            statistics.clear()
            if part is not parts[-1]:
                _advance(machine, part, values, step)


def _statistics(
    machine: "_Machine", part: Segment, values: list[Values], generator: torch.Generator, step: Callable[[], None]
) -> dict[WeightSite, Statistics]:
    statistics = _empty_statistics(part.sites)
    for batch in values:
        seen = machine.run_nodes(part, batch, keep=_watched(part))
        _gather(statistics, batch | seen, len(values), generator)
        step()
    return statistics


def _advance(machine: "_Machine", part: Segment, values: list[Values], step: Callable[[], None]) -> None:
    """Carry every batch over a segment, as its weights now are."""
    for position, batch in enumerate(values):
        seen = machine.run_nodes(part, batch, keep=part.live)
        values[position] = {node: value for node, value in (batch | seen).items() if node in part.live}
        step()


@dataclass(frozen=True)
class Measured:
    """One batch through the graph with no weight touched.

    rows: how many rows each site's statistics would gain. live_bytes: the most that one cut between segments holds.
    segment_statistics: bytes of each segment's Gram matrices.
    """

    forward_seconds: float
    rows: dict[WeightSite, int]
    live_bytes: int
    segment_statistics: tuple[int, ...]


def measure(graph: Graph, sites: Sequence[WeightSite], batch: Feeds) -> Measured:
    """Run the sites' segments once on one batch, to tell what calibration will take."""
    machine, values = _Machine(graph.module), _placed(graph, batch)
    seconds, live, sizes, rows = 0.0, [0], [], {}
    for part in segments(graph, sites):
        start = time.perf_counter()
        values |= machine.run_nodes(part, values, keep=part.live | _watched(part))
        seconds += time.perf_counter() - start
        for site in part.sites:
            rows[site] = sum(site.n_positions(use, values[use.activation]) for use in site.uses)
        values = {node: value for node, value in values.items() if node in part.live}
        live.append(sum(x.nbytes for x in values.values() if isinstance(x, Tensor)))
        sizes.append(sum(4 * groups * d * d for groups, d in _gram_shapes(part.sites)))
    return Measured(seconds, rows, max(live), tuple(sizes))


def _watched(part: Segment) -> set[fx.Node]:
    return {use.activation for site in part.sites for use in site.uses}


def _gram_shapes(sites: Iterable[WeightSite]) -> list[tuple[int, int]]:
    """(groups, d) of each Gram matrix that the sites need; sites that read the same activation share one."""
    return list({input_of(site): (site.groups, site.d) for site in sites}.values())


def input_of(site: WeightSite) -> Any:
    return site if site.layout == "kernel" else tuple(use.activation for use in site.uses)


def _placed(graph: Graph, batch: Feeds) -> Values:
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    return {node: batch[port.name] for node, port in zip(placeholders, graph.inputs, strict=True)}


class _Machine(fx.Interpreter):
    """Runs a few nodes of a graph on given values; weights, which are always there, are read where they stand."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module, garbage_collect_values=False)
        self.weights = {node: self.fetch_attr(str(node.target)) for node in module.graph.nodes if node.op == "get_attr"}

    def run_nodes(self, part: Segment, given: Values, keep: Iterable[fx.Node]) -> Values:
        """The values of `keep` among the segment's nodes; every other value is freed after its last reader."""
        keep = set(keep)
        frees = _last_readers(part.nodes, keep)
        self.env = {**self.weights, **given}
        with torch.no_grad():
            for node in part.nodes:
                if node not in self.env:
                    self.env[node] = self.run_node(node)
                for dead in frees.get(node, ()):
                    del self.env[dead]
        made, self.env = self.env, {}
        return {node: made[node] for node in part.nodes if node in keep}


def _last_readers(nodes: tuple[fx.Node, ...], keep: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    last = {source: node for node in nodes for source in (node, *node.all_input_nodes)}
    inside = set(nodes)
    frees: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if source in inside and source not in keep:
            frees.setdefault(node, []).append(source)
    return frees


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _empty_statistics(sites: Iterable[WeightSite]) -> dict[WeightSite, Statistics]:
    """One Statistics per distinct input: q, k and v, which read the same activation, share theirs."""
    shared: dict[Any, Statistics] = {}
    result = {}
    for site in sites:
        key = input_of(site)
        if key not in shared:
            shared[key] = Statistics(torch.zeros(site.groups, site.d, site.d, device=site.weight.device))
        result[site] = shared[key]
    return result


def _gather(
    statistics: dict[WeightSite, Statistics], values: Values, n_batches: int, generator: torch.Generator
) -> None:
    done = set()
    for site, statistic in statistics.items():
        if id(statistic) in done:
            continue
        done.add(id(statistic))
        for use in site.uses:
            x = values[use.activation]
            positions = None
            if site.layout == "kernel":
                quota = ROWS_PER_COLUMN * site.d // n_batches + 1
                positions = torch.randperm(site.n_positions(use, x), generator=generator)[:quota].to(x.device)
            statistic.add(site.columns(use, x, positions))
