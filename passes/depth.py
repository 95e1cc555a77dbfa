"""The pass `depth`: whole residual blocks left out, those first without which the outputs change least."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from compressor.channels.blocks import Block, drop, find_blocks
from compressor.errors import InternalError, RecipeError
from compressor.graph import Feeds, Graph
from compressor.passes.objectives import divergence, share
from compressor.pipeline import Context, Outcome, Row, check_glob, in_order, is_named

HINT = "--depth 1"


@dataclass(frozen=True)
class Depth:
    """Leave out residual blocks x + f(x), one after the other; what went in goes on as it is.

    blocks: how many. samples: calibration samples on which each block that is left is tried without: the one goes whose
        absence moves the scored output least from what the model made of them before, as a divergence of classes or a
        share of its energy.
    targets, ignore: globs over the names of blocks (`transformer.h.3`).
    """

    name: ClassVar[str] = "depth"
    needs_dense: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    blocks: int
    samples: int = 16
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.blocks, self.samples) < 1:
            raise RecipeError("blocks and samples of depth must be at least 1", hint=HINT)

    def plan(self, graph: Graph) -> list[Row]:
        return self._rows(graph, self._choose(graph), "one of the blocks that may be left out")

    def run(self, graph: Graph, context: Context) -> Outcome:
        candidates = self._choose(graph)
        batches = context.calibration(self.samples)
        wanted = [_scored(graph, batch, ()) for batch in batches]
        gone: list[Block] = []
        with context.progress.task("trying without blocks", total=self.blocks) as step:
            while len(gone) < self.blocks:
                left = [block for block in candidates if block not in gone]
                errors = [self._error(graph, [*gone, block], batches, wanted, context.is_logits) for block in left]
                gone.append(left[errors.index(min(errors))])
                step()
        rows = self._rows(graph, gone, "its block is left out")
        names = [block.name for block in gone]
        drop(graph, names)
        return Outcome(tuple(rows), notes=(f"depth: left out {', '.join(names)}",))

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        there = {site.name for site in graph.sites}
        if broken := [row.site for row in outcome.of("changed") if row.site in there]:
            raise InternalError(f"depth says that {broken[0]} is gone, and it is not")

    def _choose(self, graph: Graph) -> list[Block]:
        blocks = find_blocks(graph)
        for glob in (*self.targets, *self.ignore):
            check_glob(glob, [block.name for block in blocks], "block")
        chosen = [block for block in blocks if is_named(block.name, self.targets, self.ignore)]
        if len(chosen) <= self.blocks:
            count = f"{self.blocks} block{'s' * (self.blocks > 1)}"
            raise RecipeError(
                f"{count} cannot be left out",
                found=f"{len(chosen)} that may be, one of which has to stay",
                hint=f"--depth {len(chosen) - 1}" if len(chosen) > 1 else "--channels 0.5, which asks for no blocks",
            )
        return chosen

    def _error(
        self, graph: Graph, gone: Sequence[Block], batches: Sequence[Feeds], wanted: Sequence[Tensor], is_logits: bool
    ) -> float:
        errors = []
        for batch, dense in zip(batches, wanted, strict=True):
            made = _scored(graph, batch, gone)
            errors.append(divergence(made, dense, 1.0) if is_logits else share(made, dense))
        return float(torch.stack(errors).mean())

    def _rows(self, graph: Graph, gone: Sequence[Block], why: str) -> list[Row]:
        inside = {name for block in gone for name in block.parameters}
        rows = [
            Row(site.name, "changed", why, shapes=(site.shape, ()))
            if site.name in inside
            else Row(site.name, "left", "no part of a block that goes")
            for site in graph.sites
        ]
        return in_order(rows, graph, "no block of this model can be left out", HINT)


def _scored(graph: Graph, feeds: Feeds, gone: Sequence[Block]) -> Tensor:
    """The scored output, with the blocks left out."""
    feeds = graph.adapt(feeds)
    with torch.no_grad():
        return _Without(graph.module, gone).run(*(feeds[port.name] for port in graph.inputs))[0]


class _Without(fx.Interpreter):
    """Runs a graph in which the additions of some blocks hand on what they would be added to."""

    def __init__(self, module: fx.GraphModule, gone: Sequence[Block]):
        super().__init__(module)
        self._stays = {one.addition: one.stream for block in gone for one in block.residuals}

    def run_node(self, n: fx.Node) -> Any:
        return self.env[self._stays[n]] if n in self._stays else super().run_node(n)
