"""What a convolution sees at each of its output positions."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, fx
from torch.nn import functional as F

aten = torch.ops.aten

CONVS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv1d.padding: 1, aten.conv2d.padding: 2}
"""Operator -> how many spatial axes."""


def conv_arguments(node: fx.Node) -> tuple[list[int], list[int] | str, list[int]]:
    """(stride, padding, dilation) of a conv node, defaults filled in."""
    rank = CONVS[node.target]  # type: ignore[index]
    args = [*node.args, *[None] * 7]

    def each(value: object, default: int) -> list[int]:
        values = list(value) if isinstance(value, (list, tuple)) else [default]  # type: ignore[call-overload]
        return values * rank if len(values) == 1 else values

    padding = args[4] if isinstance(args[4], str) else each(args[4], 0)
    return each(args[3], 1), padding, each(args[5], 1)


def _margins(kernel: Iterable[int], padding: list[int] | str, dilation: list[int]) -> list[tuple[int, int]]:
    """Zeros added (before, after) each spatial axis."""
    if padding == "valid":
        return [(0, 0) for _ in kernel]
    if padding == "same":
        totals = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(p), int(p)) for p in padding]


def output_size(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int] | str, dilation: list[int]
) -> list[int]:
    kernel = weight.shape[2:]
    margins = _margins(kernel, padding, dilation)
    return [
        (size + sum(margin) - step * (k - 1) - 1) // s + 1
        for size, margin, step, k, s in zip(x.shape[2:], margins, dilation, kernel, stride, strict=True)
    ]


def patches(
    weight: Tensor,
    stride: list[int],
    padding: list[int] | str,
    dilation: list[int],
    x: Tensor,
    positions: Tensor | None,
) -> Tensor:
    """What each output position sees: (n, kernel positions, C), gathered one kernel position at a time."""
    kernel = weight.shape[2:]
    size = output_size(x, weight, stride, padding, dilation)
    margins = _margins(kernel, padding, dilation)
    x = F.pad(x, [side for margin in reversed(margins) for side in margin]).movedim(1, -1).contiguous()  # (B, *S, C)
    if positions is None:
        positions = torch.arange(x.shape[0] * math.prod(size), device=x.device)
    index = torch.unravel_index(positions, (x.shape[0], *size))
    offsets = torch.cartesian_prod(*(torch.arange(k) for k in kernel)).reshape(-1, len(kernel)).tolist()
    taken = [
        x[(index[0], *(i * s + o * step for i, s, o, step in zip(index[1:], stride, offset, dilation, strict=True)))]
        for offset in offsets
    ]
    return torch.stack(taken, dim=1)  # (n, kernel, C)
