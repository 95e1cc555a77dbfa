"""What quantization means: the grid that a weight lies on, and how an activation is rounded before it is multiplied.

A graph carries both. Weights stay stored in floating point, as code times scale, so every pass and every check reads
them as before; a `Grid` says how to get the codes back. Activations are rounded by the operator
`compressor::round_activation`, which torch runs and the exporter hands on as it is: each backend writes it as its
runtime needs it, and one that forgets writes a file that cannot be loaded.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx

from compressor.errors import InternalError

if TYPE_CHECKING:
    from compressor.graph import Feeds, Graph, Run

RoundingKind = Literal["static", "tensor", "block"]


SAFE = 64
"""The largest code of a weight that is multiplied with codes from 0 to 255. Processors that have AVX2 and no VNNI add
two such products in 16 bits, signed: 2 * 255 * 64 fits, 2 * 255 * 127 is cut off at 32767, without a word."""


@dataclass(frozen=True)
class Kernels:
    """What a runtime's 8-bit kernels ask of the codes.

    largest: magnitude of a weight's code. is_symmetric: whether zero is the middle code of each activation.
    rounds_outputs: whether a convolution's output is rounded too, without which its kernel is not taken.
    """

    largest: int = SAFE
    is_symmetric: bool = False
    rounds_outputs: bool = False


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


def round_activations(graph: "Graph", points: Iterable[Point]) -> None:
    """Put the roundings into the graph, and remember them. Raises InternalError when it has no such nodes."""
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for point in points:
        if not {point.value, *point.readers} <= nodes.keys():
            raise InternalError(f"there is no {point.value} that {', '.join(point.readers)} reads")
        value, how = nodes[point.value], point.rounding
        with graph.module.graph.inserting_after(value):
            rounded = graph.module.graph.call_function(
                torch.ops.compressor.round_activation.default, (value, how.kind, how.scale, how.zero, how.group)
            )
        rounded.meta["val"] = value.meta["val"]
        for reader in point.readers:
            nodes[reader].replace_input_with(value, rounded)
        graph.points.append(point)
    graph.restructured()


def unrounded(graph: "Graph") -> "Run":
    """The graph with activations as they are, on the weights as they stand."""

    def run(feeds: "Feeds") -> dict[str, Tensor]:
        feeds = graph.adapt(feeds)
        with torch.no_grad():
            values = _Unrounded(graph.module).run(*(feeds[port.name] for port in graph.inputs))
        return dict(zip((port.name for port in graph.outputs), values, strict=True))

    return run


class _Unrounded(fx.Interpreter):
    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.compressor.round_activation.default:
            return args[0]
        return super().call_function(target, args, kwargs)


# *** the operator ***


@torch.library.custom_op("compressor::round_activation", mutates_args=())
def round_activation(x: Tensor, kind: str, scale: float, zero: int, group: int) -> Tensor:
    """x, rounded as a `Rounding` of these fields says."""
    values = x.float()
    if kind == "static":
        rounded = scale * ((values / scale).round().add(zero).clamp(0, 255) - zero)
    elif kind == "tensor":
        rounded = _round_tensor(values)
    else:
        rounded = _round_blocks(values, group)
    return rounded.to(x.dtype)


@round_activation.register_fake
def _(x: Tensor, kind: str, scale: float, zero: int, group: int) -> Tensor:
    return torch.empty_like(x)


def _round_tensor(x: Tensor) -> Tensor:
    """By one scale and zero for the whole tensor, whose range is widened to hold zero (ONNX, DynamicQuantizeLinear)."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    if low == high:
        return x.clone()
    scale = (high - low) / 255
    zero = (-low / scale).round().clamp(0, 255)
    return scale * ((x / scale).round().add(zero).clamp(0, 255) - zero)


def _round_blocks(x: Tensor, group: int) -> Tensor:
    blocks = torch.nn.functional.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))  # (..., n, group)
    scale = blocks.abs().amax(-1, keepdim=True) / largest_code(8)
    rounded = scale * (blocks / torch.where(scale > 0, scale, 1)).round()
    return rounded.flatten(-2)[..., : x.shape[-1]].contiguous()
