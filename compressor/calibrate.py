"""Statistics of what each site sees, segment after segment of the graph, each on the outputs of the pruned ones before.

A segment is the run of nodes that ends after the last site of a block (`transformer.h.3`). Every calibration batch is
run through a segment once to gather statistics; the caller then rewrites the segment's weights; every batch is run
through it once more, with the new weights, to make the next segment's inputs. At any time the statistics of one
segment and the live values at one cut are held, whatever the model's depth.

Asked to, the dense model is run beside on the same batches, one segment ahead of the pruned one: what its sites see and
what its segments make is there to be matched. Live values are then held twice.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from compressor.errors import DataError
from compressor.graph import Feeds, Graph
from compressor.machine import Machine, Values
from compressor.progress import Progress
from compressor.segments import Segment, scored, segments
from compressor.sites import BATCH_NORMS, WeightSite
from compressor.statistics import Moments, Statistics

ROWS_PER_COLUMN = 64
"""Rows sampled per column of a convolution. Neighbouring positions of an image repeat each other; past 64 rows a
column the solution no longer changes, and gathering every position would be most of the run time."""


@dataclass
class Block:
    """A segment that has been seen: its sites' statistics, and what the dense model has in its place.

    inputs: what the segment reads, batch by batch, made by the pruned segments before it.
    pruned: what its outputs are on these inputs while its weights are dense; dense: what they are in the dense model.
    moments: of what each of its batch normalizations reads in the dense model, on the batches that are learned from.
    final: the scored output of the dense model for each batch that is held out of the statistics.
    All but the statistics are empty unless the dense model is run beside.
    """

    segment: Segment
    statistics: dict[WeightSite, Statistics]
    machine: Machine
    inputs: list[Values]
    pruned: list[Values]
    dense: list[Values]
    final: dict[int, Values]
    moments: dict[fx.Node, Moments] = field(default_factory=dict)

    @property
    def learned(self) -> list[int]:
        """The batches that are not held out."""
        return [at for at in range(len(self.inputs)) if at not in self.final]

    def loss(self, batch: int, wanted: Values, weights: Values) -> Tensor:
        """Squared error of the outputs of one batch, as a share of the energy of the wanted ones.

        weights: values that take the place of the graph's own, by node; the loss has gradients for them.
        """
        given = self.inputs[batch] | weights
        return _share(self.machine.run_nodes(self.segment.nodes, given, self.segment.outputs, gradients=True), wanted)

    def parameters(self) -> Iterator[tuple[Tensor, tuple[fx.Node, ...]]]:
        """Every parameter that only this segment reads, with the nodes that fetch it."""
        inside = set(self.segment.nodes)
        fetching: dict[int, list[fx.Node]] = {}
        for node, x in self.machine.weights.items():
            fetching.setdefault(id(x), []).append(node)
        for nodes in fetching.values():
            x = self.machine.weights[nodes[0]]
            users = {user for node in nodes for user in node.users}
            if isinstance(x, torch.nn.Parameter) and users and users <= inside:
                yield x, tuple(nodes)

    def held_out_error(self) -> float:
        """Squared error of the scored output on the batches held out, with the weights as they stand, as such a share.

        The blocks to come are dense. How near a block itself comes to the dense one would say less: what is left of its
        error can be small, and lie where the blocks to come are sensitive.
        """
        errors = [
            _share(self.machine.run_nodes(self.segment.rest, self.inputs[batch], wanted), wanted)
            for batch, wanted in self.final.items()
        ]
        return float(torch.stack(errors).mean())


def _share(made: Values, wanted: Values) -> Tensor:
    error = torch.stack([(made[node] - y).square().sum() for node, y in wanted.items()]).sum()
    energy = torch.stack([y.square().sum() for y in wanted.values()]).sum()
    return error / energy.clamp_min(torch.finfo(energy.dtype).tiny)


def calibrate(
    graph: Graph,
    sites: Sequence[WeightSite],
    batches: Sequence[Feeds],
    *,
    seed: int,
    progress: Progress,
    beside: bool = False,
    cross: bool = False,
    hold_out: bool = False,
    done: int = 0,
) -> Iterator[Block]:
    """Yield each segment with its sites' statistics; write the sites' weights before asking for the next.

    The statistics are emptied when the next segment is asked for, so that those of one are held at a time.

    batches: inputs by name. seed: chooses the positions sampled from convolutions' inputs.
    beside: whether the dense model is run too, so that the outputs of its segments are known; cross: and the statistics
    relate its inputs to those of the pruned one. hold_out: whether every fifth batch is kept out of the statistics.
    done: how many of the first segments' weights are known already: nothing is gathered for these.
    Raises DataError when that leaves nothing to learn from.
    """
    parts = segments(graph, sites, whole=beside)
    if not parts:
        return
    if hold_out and len(batches) < 2:
        raise DataError(
            "one calibration batch cannot be both learned from and held out",
            found=f"{len(next(iter(batches[0].values())))} samples in one batch" if batches else "no samples",
            hint="more calibration samples, or match, batchnorm and reconstruct that ask none: pruned, off and 0",
        )
    streams = _Streams(graph, batches, beside, cross, held_out(len(batches)) if hold_out else ())
    with progress.task("calibrating", total=(2 * len(parts) - 1) * len(batches)) as step:
        for number, part in enumerate(parts):
            # A segment's samples are its own, whether or not those before it were looked at.
            generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
            block = streams.see(part, generator, step) if number >= done else streams.skip(part, step)
            yield block
            block.statistics.clear()
            if part is not parts[-1]:
                streams.advance(part, step)


def held_out(n_batches: int) -> Sequence[int]:
    """Every fifth batch; of fewer than five, the last. Batches may be sorted, so it is not the last fifth."""
    return range(4, n_batches, 5) or [n_batches - 1]


class _Streams:
    """Every batch as the pruned model has it at the current cut, and, where asked for, as the dense model does."""

    def __init__(self, graph: Graph, batches: Sequence[Feeds], beside: bool, cross: bool, held: Iterable[int]):
        self.machine = Machine(graph.module)
        self.pruned = [placed(graph, batch) for batch in batches]
        self.dense = list(self.pruned) if beside else []
        self.cross = cross
        output = scored(next(iter(reversed(graph.module.graph.nodes))))
        self.final = {at: {output: graph.run(batches[at])[graph.outputs[0].name]} for at in held}

    def see(self, part: Segment, generator: torch.Generator, step: Callable[[], None]) -> Block:
        """Gather the segment's statistics, and carry the dense batches over it while its weights are dense."""
        statistics = empty_statistics(part.sites, self.cross)
        block = Block(part, statistics, self.machine, self.pruned, [], [], self.final)
        for at, batch in enumerate(self.pruned):
            seen = batch | self.machine.run_nodes(part.nodes, batch, keep=watched(part) | part.outputs)
            dense = self._carry_dense(part, at, block) if self.dense else seen
            if self.dense:
                block.pruned.append({node: seen[node] for node in part.outputs})
                block.dense.append({node: dense[node] for node in part.outputs})
            if at not in self.final:
                gather(statistics, seen, dense, len(self.pruned) - len(self.final), generator)
            step()
        return block

    def skip(self, part: Segment, step: Callable[[], None]) -> Block:
        """Carry the dense batches over a segment, before its weights are written."""
        block = Block(part, {}, self.machine, self.pruned, [], [], self.final)
        for at in range(len(self.pruned)):
            if self.dense:
                self._carry_dense(part, at, block)
            step()
        return block

    def _carry_dense(self, part: Segment, at: int, block: Block) -> Values:
        before, norms = self.dense[at], batch_norms(part)
        keep = part.live | part.outputs | watched(part) | set(norms.values())
        seen = before | self.machine.run_nodes(part.nodes, before, keep)
        if at not in self.final:
            for node, read in norms.items():
                block.moments.setdefault(node, Moments()).add(seen[read])
        self.dense[at] = {node: value for node, value in seen.items() if node in part.live}
        return seen

    def advance(self, part: Segment, step: Callable[[], None]) -> None:
        """Carry every batch over a segment, as its weights now are."""
        for at, batch in enumerate(self.pruned):
            seen = batch | self.machine.run_nodes(part.nodes, batch, keep=part.live)
            self.pruned[at] = {node: value for node, value in seen.items() if node in part.live}
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

    @property
    def n_segments(self) -> int:
        return len(self.segment_statistics)


def measure(graph: Graph, sites: Sequence[WeightSite], batch: Feeds) -> Measured:
    """Run the sites' segments once on one batch, to tell what calibration will take."""
    machine, values = Machine(graph.module), placed(graph, batch)
    seconds, live, sizes, rows = 0.0, [0], [], {}
    for part in segments(graph, sites):
        start = time.perf_counter()
        values |= machine.run_nodes(part.nodes, values, keep=part.live | watched(part))
        seconds += time.perf_counter() - start
        for site in part.sites:
            rows[site] = sum(site.n_positions(use, values[use.activation]) for use in site.uses)
        values = {node: value for node, value in values.items() if node in part.live}
        live.append(sum(x.nbytes for x in values.values() if isinstance(x, Tensor)))
        sizes.append(sum(4 * groups * d * d for groups, d in _gram_shapes(part.sites)))
    return Measured(seconds, rows, max(live), tuple(sizes))


def batch_norms(part: Segment) -> dict[fx.Node, fx.Node]:
    """The batch normalizations of a segment, in order, and what each reads."""
    return {node: node.args[0] for node in part.nodes if node.target in BATCH_NORMS}  # type: ignore[misc]


def watched(part: Segment) -> set[fx.Node]:
    return {use.activation for site in part.sites for use in site.uses}


def _gram_shapes(sites: Iterable[WeightSite]) -> list[tuple[int, int]]:
    """(groups, d) of each Gram matrix that the sites need; sites that read the same activation share one."""
    return list({input_of(site): (site.groups, site.d) for site in sites}.values())


def input_of(site: WeightSite) -> Any:
    return site if site.layout == "kernel" else tuple(use.activation for use in site.uses)


def placed(graph: Graph, batch: Feeds) -> Values:
    """A batch by the nodes that it is fed to."""
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    batch = graph.adapt(batch)
    return {node: batch[port.name] for node, port in zip(placeholders, graph.inputs, strict=True)}


def empty_statistics(sites: Iterable[WeightSite], cross: bool) -> dict[WeightSite, Statistics]:
    """One Statistics per distinct input: q, k and v, which read the same activation, share theirs."""
    shared: dict[Any, Statistics] = {}
    result = {}
    for site in sites:
        key = input_of(site)
        if key not in shared:
            H = torch.zeros(site.groups, site.d, site.d, device=site.weight.device)
            shared[key] = Statistics(H, torch.zeros_like(H) if cross else None)
        result[site] = shared[key]
    return result


def gather(
    statistics: dict[WeightSite, Statistics], seen: Values, dense: Values, n_batches: int, generator: torch.Generator
) -> None:
    """Add what the sites read in one of n_batches batches, and what they read in its place in the dense model."""
    done = set()
    for site, statistic in statistics.items():
        if id(statistic) in done:
            continue
        done.add(id(statistic))
        for use in site.uses:
            x = seen[use.activation]
            positions = None
            if site.layout == "kernel":
                quota = ROWS_PER_COLUMN * site.d // n_batches + 1
                positions = torch.randperm(site.n_positions(use, x), generator=generator)[:quota].to(x.device)
            Z = site.columns(use, dense[use.activation], positions) if statistic.G is not None else None
            statistic.add(site.columns(use, x, positions), Z)
