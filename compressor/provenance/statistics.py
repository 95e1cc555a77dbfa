"""Rules of normalizations, reductions, softmax and pooling: what takes something over an axis."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from compressor.provenance.facets import Value, mapped, spread
from compressor.provenance.meeting import WHOLE
from compressor.provenance.tracer import Made, Tracer, rule

LAYER_NORM = "a layer normalization takes its statistics over them"
ROOT_MEAN_SQUARE = "an RMS normalization takes its statistics over them"
SYMMETRIC = (LAYER_NORM, ROOT_MEAN_SQUARE)
"""Of what is taken over channels, that which is the same in whatever order they come."""


@rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm", "cudnn_batch_norm")
def by_channel(tracer: Tracer, node: fx.Node) -> Made:
    """Statistics of each channel by itself, scaled and moved by stored vectors."""
    x, *vectors = tracer.tensors_of(node.args)
    value = tracer.join(x.shape, [x, *(_per_channel(x, one) for one in vectors)])
    return (value, *[None] * (len(node.meta["val"]) - 1)) if isinstance(node.meta["val"], (list, tuple)) else value


def _per_channel(x: Value, vector: Value) -> Value:
    return mapped(vector, lambda ids: ids.reshape(-1, *[1] * (len(x.shape) - 2)))


@rule("layer_norm", "rms_norm")
def over_the_last(tracer: Tracer, node: fx.Node) -> Made:
    x, *vectors = tracer.tensors_of(node.args)
    value = tracer.join(x.shape, [x, *vectors])
    reason = ROOT_MEAN_SQUARE if "rms" in str(node.target) else LAYER_NORM
    return tracer.mixed(value, range(-len(tracer.argument(node, 1, "normalized_shape")), 0), reason)


@rule("group_norm")
def by_group(tracer: Tracer, node: fx.Node) -> Made:
    """Statistics of groups of channels: a group goes as a whole."""
    x, *vectors = tracer.tensors_of(node.args)
    value = tracer.join(x.shape, [x, *(_per_channel(x, one) for one in vectors)])
    ids = tracer.vector(value, 1, WHOLE)
    if ids is not None:
        groups = ids.reshape(tracer.argument(node, 1, "num_groups"), -1)
        tracer.labels.unite(groups, groups[:, :1])
    return value


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "cumsum")
def softmax(tracer: Tracer, node: fx.Node) -> Made:
    return tracer.mixed(tracer.value(node.args[0]), [tracer.argument(node, 1, "dim")], f"{_name(node)} runs over them")


@rule("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "argmax", "argmin", "prod", "any", "all")
def reduction(tracer: Tracer, node: fx.Node) -> Made:
    value, shape = tracer.value(node.args[0]), tracer.shape(node)
    axes = sorted(_axes(node, len(value.shape)))
    value = tracer.mixed(value, axes, _why_reduced(node))
    facets = [ids for ids in value.facets if not _varies(ids, axes)]
    for axis in reversed(axes):
        facets = [ids.select(axis, 0) for ids in facets]
    return Value(shape, tuple(ids.reshape(shape) if ids.shape != shape else ids for ids in facets), value.fixed)


def _varies(ids: torch.Tensor, axes: Iterable[int]) -> bool:
    return any(ids.shape[axis] > 1 and ids.stride(axis) for axis in axes)


def _axes(node: fx.Node, rank: int) -> set[int]:
    at = 2 if "linalg_vector_norm" in str(node.target) else 1
    given: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    if given is None or given == []:
        return set(range(rank))
    return {axis % rank for axis in ([given] if isinstance(given, int) else given)}


def _why_reduced(node: fx.Node) -> str:
    """The mean of squares that feeds a reciprocal root is an RMS normalization written out."""
    squared = node.args[0].target if isinstance(node.args[0], fx.Node) else None
    if "mean" in str(node.target) and squared is torch.ops.aten.pow.Tensor_Scalar:
        return ROOT_MEAN_SQUARE
    return f"{_name(node)} is taken over them"


@rule(
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d_with_indices", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
)  # fmt: skip
def pool(tracer: Tracer, node: fx.Node) -> Made:
    """Pixels of one channel make pixels of that channel."""
    x, rank = tracer.value(node.args[0]), 1 if "1d" in str(node.target) else 2
    axis = len(x.shape) - rank - 1
    ids = tracer.vector(x, axis, "pixels are pooled")
    made = node.meta["val"]
    outputs = [tracer.shape_of(node, one) for one in (made if isinstance(made, (list, tuple)) else [made])]
    values = tuple(Value(shape, () if ids is None else (spread(ids, shape, axis),), x.fixed) for shape in outputs)
    return values if isinstance(made, (list, tuple)) else values[0]


def _name(node: fx.Node) -> str:
    return node.target._schema.name.removeprefix("aten::").strip("_")  # type: ignore[union-attr]
