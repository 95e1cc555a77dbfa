"""A graph whose activations are rounded to 8 bits, the same without, and the operator that rounds."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from compressor.errors import InternalError
from compressor.graph import Feeds, Graph, Run
from compressor.quantization import Point, largest_code


def round_activations(graph: Graph, points: Iterable[Point]) -> None:
    """Put the roundings into the graph, and remember them. Raises InternalError when it has no such nodes."""
    points = list(points)
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for point in points:
        if point.value not in nodes or not all(_reads(nodes, reader, point.value) for reader in point.readers):
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
    if points:
        graph.changed(lambda other: round_activations(other, points))


def _reads(nodes: Mapping[str, fx.Node], reader: str, value: str) -> bool:
    return reader in nodes and nodes[value] in nodes[reader].all_input_nodes


def unrounded(graph: Graph) -> Run:
    """The graph with activations as they are, on the weights as they stand."""

    def run(feeds: Feeds) -> dict[str, Tensor]:
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
        scale = _stored(scale, x.dtype)
        rounded = scale * ((values / scale).round().add(zero).clamp(0, 255) - zero)
    elif kind == "tensor":
        rounded = _round_tensor(values)
    else:
        rounded = _round_blocks(values, group)
    return rounded.to(x.dtype)


@round_activation.register_fake
def _(x: Tensor, kind: str, scale: float, zero: int, group: int) -> Tensor:
    return torch.empty_like(x)


def _stored(scale: float, dtype: torch.dtype) -> float:
    """A scale as files hold it: of the type of what it scales, and a normal number there."""
    return float(torch.tensor(max(scale, torch.finfo(dtype).smallest_normal), dtype=dtype))


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
