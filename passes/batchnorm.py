"""The running statistics of batch normalizations, moved by what pruning has changed.

To measure them anew on calibration data would also bring in how these differ from the training data, which costs a
dense model more than pruning may. So they are moved by the difference alone, between the pruned and the dense model on
the same samples:

    mean += mean_pruned - mean_dense,    variance *= variance_pruned / variance_dense.

From the first to the last of a block, each on what those before now make.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile

from torch import Tensor, fx

from compressor.calibrate import Block
from compressor.statistics import Moments

FARTHEST = 10.0
"""How many times larger or smaller a variance may become: past it a channel is as good as dead in one of the models."""

NUMBER = "corrects_batchnorm"
"""In the rows of sites: 1 where the correction of their block was kept, 0 where it was taken back."""

Running = dict[fx.Node, tuple[Tensor, Tensor]]  # a batch normalization -> its running mean and variance (C,)


def said(numbers: Iterable[Mapping[str, float]]) -> str:
    """What was done, by the numbers of all rows."""
    kept = [one[NUMBER] for one in numbers if NUMBER in one]
    if not kept:
        return "batchnorm: no batch normalization reads what was pruned"
    rest = ", and did not help behind the others" if not all(kept) else ""
    return f"batchnorm: running statistics were moved behind {sum(kept):.0f} of {len(kept)} weights{rest}"


def running(block: Block) -> Running:
    """What `Correction` may write: statistics that one batch normalization of the block alone reads."""
    return {node: (mean, variance) for node, mean, variance in _running(block)}


class Correction:
    """Moves the running statistics of a block from where they were before any weight of it was written."""

    def __init__(self, block: Block):
        self._block = block
        self._before = {node: tuple(x.clone() for x in both) for node, both in running(block).items()}

    @property
    def written(self) -> list[Tensor]:
        """Every tensor that `apply` writes; none where the block has no batch normalization of its own."""
        return [x for both in running(self._block).values() for x in both]

    def apply(self) -> None:
        """Write the statistics, in place, for the block's weights as they now stand."""
        for node, (mean, variance) in running(self._block).items():
            dense, pruned = self._block.moments[node], _moments(self._block, node)
            mean_before, variance_before = self._before[node]
            ratio = (pruned.variance() / dense.variance()).nan_to_num(1.0).clamp(1 / FARTHEST, FARTHEST)
            mean.copy_(mean_before + pruned.mean() - dense.mean())
            variance.copy_(variance_before * ratio)


def _running(block: Block) -> Iterator[tuple[fx.Node, Tensor, Tensor]]:
    weights = block.machine.weights
    for node in block.moments:
        both = [weights.get(x) for x in node.args[3:5]]  # type: ignore[call-overload]
        mean, variance = both
        readers = {user for one, x in weights.items() if any(x is y for y in both) for user in one.users}
        if mean is not None and variance is not None and readers == {node}:
            yield node, mean, variance


def _moments(block: Block, node: fx.Node) -> Moments:
    """Of what a batch normalization now reads, on the batches that are learned from."""
    read, found = node.args[0], Moments()
    assert isinstance(read, fx.Node)
    before = tuple(takewhile(lambda one: one is not node, block.segment.nodes))
    for at in block.learned:
        given = block.inputs[at]
        found.add((given | block.machine.run_nodes(before, given, keep={read}))[read])
    return found
