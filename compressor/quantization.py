"""What quantization means: the grid that a weight lies on, and how an activation is rounded before it is multiplied.

A graph carries both. Weights stay stored in floating point, as code times scale, so every pass and every check reads
them as before; a `Grid` says how to get the codes back. Activations are rounded by the operator
`compressor::round_activation`, which torch runs and the exporter hands on as it is: each backend writes it as its
runtime needs it, and one that forgets writes a file that cannot be loaded.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compressor.errors import InternalError

RoundingKind = Literal["static", "tensor", "block"]


SAFE = 64
"""The largest code of a weight that is multiplied with codes from 0 to 255. Processors that have AVX2 and no VNNI add
two such products in 16 bits, signed: 2 * 255 * 64 fits, 2 * 255 * 127 is cut off at 32767, without a word."""


@dataclass(frozen=True)
class Kernels:
    """What a runtime's 8-bit kernels ask of the codes.

    largest: magnitude of a weight's code. is_symmetric: whether zero is the middle code of each activation.
    rounds_outputs: whether a convolution's output is rounded too, without which its kernel is not taken.
    dtypes: what scales and all that is not codes may be, the runtime's first choice first.
    """

    largest: int = SAFE
    is_symmetric: bool = False
    rounds_outputs: bool = False
    dtypes: tuple[str, ...] = ("float32",)


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of one weight: code * scale, with 0 * scale for zero.

    bits: of a code as it is stored. largest: its magnitude, at most 2^(bits - 1) - 1.
    scale: (groups, m, n), positive: one for each d / n neighbours of a row of `WeightSite.matrix`.
    """

    bits: int
    largest: int
    scale: Tensor

    def spread(self, d: int) -> Tensor:
        """The scale of each of d columns: (groups, m, d)."""
        return self.scale.repeat_interleave(d // self.scale.shape[-1], dim=-1)

    def codes(self, W: Tensor) -> Tensor:
        """The codes of weights that lie on the grid (groups, m, d), int8. Raises InternalError when they do not."""
        x = W / self.spread(W.shape[-1])
        codes = x.round()
        if (x - codes).abs().max() > 1e-2 or codes.abs().max() > self.largest:
            raise InternalError(f"a weight has left its {self.bits}-bit grid after it was quantized")
        return codes.to(torch.int8)


def largest_code(bits: int) -> int:
    return 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class Rounding:
    """How an activation is rounded to 8 bits.

    kind "static": to scale * (code - zero) with a code from 0 to 255, both known beforehand; where zero is 128,
    signed codes less 128 do as well. "tensor": the same, with a scale and a zero from the least and the largest value
    of each call, as ONNX's DynamicQuantizeLinear chooses them. "block": to scale * code with a code within +-127 and
    a scale for each `group` neighbours along the last axis, from their largest magnitude, as kernels for weights of
    few bits do.
    """

    kind: RoundingKind
    scale: float = 1.0
    zero: int = 0
    group: int = 0


@dataclass(frozen=True)
class Point:
    """An activation that is rounded: the node that makes it, and those of its readers that get it rounded, by name."""

    value: str
    readers: tuple[str, ...]
    rounding: Rounding
