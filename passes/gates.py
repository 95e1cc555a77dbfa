"""What held-out samples are asked, decided once a model is known: only where there is something to ask, and of whom."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from compressor.graph import Feeds, Graph
from compressor.passes.blockwise import has_norms
from compressor.passes.objectives import scored_output
from compressor.sites import WeightSite

if TYPE_CHECKING:
    from compressor.passes.sparsify import Sparsify

NOT_BY_LOSS = (
    "scope: each weight gives the same share, since what zeros do to the loss is not told well for convolutions"
)
NOBODY_TO_ASK = "match and batchnorm: one batch of calibration samples leaves none to hold out, so neither is tried"


def decide(options: "Sparsify", graph: Graph, sites: Iterable[WeightSite]) -> "Sparsify":
    """The options, with what hangs on the model decided.

    Dense targets make up for the blocks before: they lift convolutional networks, and harm the transformers that were
    tried (benchmarks/accuracy.md), so that only convolutions are asked about. What zeros cost the loss is told for
    tokens, each of which is a term of it; the pixels of an image are one term together, and what they have wrong alike
    costs more than is told. One prediction for a whole sample tells little, the more so as a model is sure of samples
    that it was trained on; outputs of blocks tell more then. Without refit all but the mask stays.
    """
    is_fitted = options.refit > 0
    convolves = any(site.layout == "kernel" for site in sites)
    return dataclasses.replace(
        options,
        match="pruned" if options.match == "auto" and not (is_fitted and convolves) else options.match,
        through=("model" if _tells_tokens(graph) else "blocks") if options.through == "auto" else options.through,
        scope="site" if options.scope == "auto" and convolves else options.scope,
        batchnorm=options.batchnorm and is_fitted and has_norms(graph),
        bias=options.bias and is_fitted,
    )


def _tells_tokens(graph: Graph) -> bool:
    """Whether what is scored has an axis of tokens: (batch, tokens, values)."""
    return bool(scored_output(graph).meta["val"].ndim == 3)


def divide(decided: "Sparsify") -> tuple["Sparsify", int]:
    """The options of what is done block after block, and the steps that then go through the whole model."""
    if decided.through == "blocks":
        return decided, 0
    return dataclasses.replace(decided, reconstruct=0), decided.reconstruct


def undivided(asked: "Sparsify", decided: "Sparsify") -> tuple[str, ...]:
    """What there is to say where each site gives the same share, though by the options alone it would not."""
    return (NOT_BY_LOSS,) if asked.divides != decided.divides else ()


def ask(options: "Sparsify", batches: Callable[[], Sequence[Feeds]]) -> tuple["Sparsify", tuple[str, ...]]:
    """The options as they can be asked with these batches, and what there is to say of it."""
    asks = options.match == "auto" or options.batchnorm
    # What reconstructs cannot do without: calibration refuses.
    if not asks or options.reconstruct or len(batches()) > 1:
        return options, ()
    match = "pruned" if options.match == "auto" else options.match
    return dataclasses.replace(options, match=match, batchnorm=False), (NOBODY_TO_ASK,)
