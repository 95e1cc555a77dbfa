"""What the sites of a graph see while no weight is touched, segment after segment."""

from collections.abc import Iterator, Sequence

import torch

from compressor.calibrate import empty_statistics, gather, placed, watched
from compressor.graph import Feeds, Graph
from compressor.machine import Machine
from compressor.progress import Progress
from compressor.segments import segments
from compressor.sites import WeightSite
from compressor.statistics import Statistics


def observe(
    graph: Graph, sites: Sequence[WeightSite], batches: Sequence[Feeds], *, seed: int, progress: Progress
) -> Iterator[dict[WeightSite, Statistics]]:
    """Yield the statistics of each segment's sites; every batch is run through the graph once.

    seed: chooses the positions sampled from convolutions' inputs. The statistics of one segment are held at a time.
    """
    machine, generator = Machine(graph.module), torch.Generator().manual_seed(seed)
    values = [placed(graph, batch) for batch in batches]
    parts = segments(graph, sites)
    with progress.task("observing", total=len(parts) * len(batches)) as step:
        for part in parts:
            statistics = empty_statistics(part.sites, cross=False)
            for at, given in enumerate(values):
                seen = given | machine.run_nodes(part.nodes, given, keep=part.live | watched(part))
                gather(statistics, seen, seen, len(batches), generator)
                values[at] = {node: value for node, value in seen.items() if node in part.live}
                step()
            yield statistics
