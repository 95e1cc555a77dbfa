"""Channel groups: what must be removed together so that a smaller graph computes the same.

A unit is the least that can go: one hidden channel of an MLP, one channel of a convolution, a key-value head with the
query heads that read it. A group holds the units that own the same axes of the same tensors; each unit owns, of each
axis, some positions. `keep` (units,) is True where a unit is kept.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Role = Literal["produces", "consumes", "follows"]
Kind = Literal["mlp", "heads", "conv", "width", "other"]


@dataclass(frozen=True, eq=False)
class Slice:
    """What the units of a group own of one tensor along one axis.

    name: the parameter's or buffer's qualified name (one name for tied ones), or the name of a state input or output.
    owner: (length of the axis,) int64, the unit that each position belongs to; -1 where it belongs to none of this
        group.
    role: "produces" for the outputs of a contraction or the columns of an embedding; "consumes" for the axis that a
        contraction sums over; "follows" for what is one value a channel (biases, normalizations, running statistics)
        and for states.
    is_state: whether it is an input or output of the graph (a key-value cache) instead of a tensor that it stores.
    """

    name: str
    axis: int
    owner: Tensor
    role: Role
    is_state: bool = False

    def kept(self, keep: Tensor) -> Tensor:
        """(length of the axis,) bool: the positions that stay when the units `keep` (units,) stay."""
        return (self.owner < 0) | keep[self.owner.clamp(min=0)]

    def positions(self, unit: int) -> Tensor:
        """The positions that one unit owns, int64, in order."""
        return (self.owner == unit).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that own the same axes of the same tensors.

    name: the first parameter that produces them, in the order of the graph; stable from run to run.
    kind: "mlp" between two matrices, "heads" through an attention, "conv" made by convolutions, "width" a stream that
        blocks add to, "other" for what is none of these.
    units: how many there are. slices: parameters and buffers in the order of the graph, then states.
    frozen: why none of them can be removed, or "".
    """

    name: str
    kind: Kind
    units: int
    slices: tuple[Slice, ...]
    frozen: str = ""

    @property
    def producers(self) -> tuple[Slice, ...]:
        return tuple(one for one in self.slices if one.role == "produces")

    @property
    def consumers(self) -> tuple[Slice, ...]:
        return tuple(one for one in self.slices if one.role == "consumes")

    def all_kept(self) -> Tensor:
        """(units,) bool, all True: a `keep` to begin from."""
        return torch.ones(self.units, dtype=torch.bool)
