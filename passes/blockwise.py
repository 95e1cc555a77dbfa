"""Blocks solved one after the other, and kept: a run that was killed goes on after the last that it had finished.

A block's result follows from the weights before it, the calibration batches, the options and the seed alone, so that a
run that goes on ends in the same bytes as one that was never killed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.calibrate import Block, calibrate
from compressor.fingerprint import digest, own_code
from compressor.graph import Feeds, Graph
from compressor.passes.checkpoint import Checkpoint
from compressor.passes.reconstruct import CHECKS
from compressor.passes.solve import BlockSolver, Numbers, written
from compressor.passes.student import own_tensors
from compressor.passes.trials import put
from compressor.pipeline import Context, Effort, format_pass
from compressor.sites import BATCH_NORMS, WeightSite


def holds_out(options: Any, norms: bool = True) -> bool:
    """Whether calibration samples that nothing is learned from decide what is kept. norms: as `has_norms` says."""
    return options.match == "auto" or (options.batchnorm and norms) or options.reconstruct > 0


def runs_beside(options: Any, norms: bool = True) -> bool:
    """Whether the dense model is run beside the pruned one."""
    return options.match != "pruned" or holds_out(options, norms)


def effort(options: Any, graph: Graph, observed: int = 0) -> Effort:
    """What `solve_blocks` does with each block; observed: samples that the pass looks at before."""
    trials, norms = 2 if options.match == "auto" else 1, has_norms(graph)
    checks = 2 * trials if options.batchnorm and norms else (trials if trials > 1 else 0)
    checks += CHECKS + 1 if options.reconstruct else 0
    return Effort(trials, runs_beside(options, norms), checks, options.reconstruct, observed)


def has_norms(graph: Graph) -> bool:
    """Whether there are batch normalizations, without which their correction asks for nothing."""
    return any(node.target in BATCH_NORMS for node in graph.module.graph.nodes)


def solve_blocks(
    graph: Graph, sites: Sequence[WeightSite], solver: BlockSolver, context: Context
) -> dict[WeightSite, Numbers]:
    """Write the weights of some sites, block after block; returns the numbers of their rows."""
    batches = context.calibration(solver.options.samples)
    journal = Journal(context.kept, _key(graph, solver.options, batches, context.seed) if context.kept else "")
    done = journal.count()
    norms = has_norms(graph)
    blocks = calibrate(
        graph,
        sites,
        batches,
        seed=context.seed,
        progress=context.progress,
        beside=runs_beside(solver.options, norms),
        cross=solver.options.match != "pruned",
        hold_out=holds_out(solver.options, norms),
        done=done,
    )
    solved: dict[WeightSite, Numbers] = {}
    for number, block in enumerate(blocks):
        solved |= journal.read(number, block) if number < done else journal.keep(number, block, solver.solve(block))
    return solved


class Journal:
    """What each block of the run that `key` stands for has become; nothing is kept where there is no folder."""

    def __init__(self, folder: Path | None, key: str):
        self._folder, self._key = folder, key

    def count(self) -> int:
        """How many blocks are kept, from the first on."""
        number = 0
        while self._of(number).load() is not None:
            number += 1
        return number

    def keep(self, number: int, block: Block, solved: dict[WeightSite, Numbers]) -> dict[WeightSite, Numbers]:
        """Keep a block that was solved; returns what it is given."""
        numbers = {site.name: one for site, one in solved.items()}
        self._of(number).save(numbers, {"block": {str(i): x.detach() for i, x in enumerate(_changed(block))}})
        return solved

    def read(self, number: int, block: Block) -> dict[WeightSite, Numbers]:
        """Write a block that is kept, in place."""
        found = self._of(number).load()
        assert found is not None, "count says that it is there"
        numbers, tensors = found
        changed = _changed(block)
        put(changed, [tensors["block"][str(i)] for i in range(len(changed))])
        return {site: numbers[site.name] for site in block.segment.sites}

    def _of(self, number: int) -> Checkpoint:
        return Checkpoint(self._folder, self._key, f"block-{number}")


def _changed(block: Block) -> list[Tensor]:
    """Every tensor that solving a block may change, in the order of the graph."""
    found = [*written(block), *(x for x, _ in block.parameters())]
    return list({id(x): x for x in found}.values())


def _key(graph: Graph, options: Any, batches: Sequence[Feeds], seed: int) -> str:
    weights = [part for pair in sorted(own_tensors(graph).items()) for part in pair]
    feeds = [part for batch in batches for pair in sorted(batch.items()) for part in pair]
    return digest(own_code(), format_pass(options), seed, *weights, *feeds)
