"""Rules of products that sum over channels: matrices, convolutions, attention."""

from typing import Any

import torch
from torch import Tensor, fx

from compressor.provenance.facets import Value, mapped, settled, spread, varying
from compressor.provenance.meeting import NO_CHANNEL, contract, mix
from compressor.provenance.tracer import Made, Tracer, rule

ATTENDED = "a softmax over them mixes them all"
HEAD_SIZE = "they are inside of a head, which goes as a whole"
GROUPED = "a grouped convolution, transposed, reads them"

# *** matrices ***


@rule("linear")
def linear(tracer: Tracer, node: fx.Node) -> Made:
    x, weight, *bias = tracer.tensors_of((*node.args, *node.kwargs.values()))
    return _biased(tracer, _product(tracer, x, mapped(weight, lambda ids: ids.transpose(-1, -2))), bias)


@rule("addmm", "baddbmm")
def matrices_added(tracer: Tracer, node: fx.Node) -> Made:
    bias, x, y = tracer.tensors_of(node.args)
    return _biased(tracer, _product(tracer, x, y), [bias])


@rule("mm", "bmm", "matmul")
def matrices(tracer: Tracer, node: fx.Node) -> Made:
    x, y = tracer.tensors_of(node.args)
    if len(x.shape) < 2 or len(y.shape) < 2:
        return tracer.unknown(node)
    return _product(tracer, x, y)


def _product(tracer: Tracer, x: Value, y: Value) -> Value:
    """x (..., m, K) times y (..., K, n)."""
    x, y = mapped(x, lambda ids: ids.unsqueeze(-1)), mapped(y, lambda ids: ids.unsqueeze(-3))
    full = tuple(torch.broadcast_shapes(x.shape, y.shape))  # (..., m, K, n)
    summed = len(full) - 2
    facets = contract(tracer.labels, full, [x, y], {summed})
    shape = (*full[:summed], full[-1])
    if not (x.fixed or y.fixed):
        _mark_heads(tracer, facets, len(shape) - 2)
    return Value(shape, facets, x.fixed and y.fixed)


def _mark_heads(tracer: Tracer, facets: tuple[Tensor, ...], n_batch: int) -> None:
    """What two activations that are multiplied have in common along their batch axes are heads."""
    for ids in facets:
        if varying(ids) and min(varying(ids)) < n_batch:
            tracer.labels.mark("heads", ids)


def _biased(tracer: Tracer, value: Value, biases: list[Value]) -> Value:
    return tracer.join(value.shape, [value, *biases]) if biases else value


# *** attention ***


@rule("scaled_dot_product_attention")
def attention(tracer: Tracer, node: fx.Node) -> Made:
    """q (B, H, S, D), k and v (B, H or fewer, T, D): heads survive, and what is inside of one stays or goes with it."""
    q, k, v, *mask = tracer.tensors_of((*node.args, *node.kwargs.values()))
    heads, inside = q.shape[-3] if len(q.shape) > 3 else 1, len(q.shape) - 1
    q, k = (_without_head_size(tracer, one) for one in (q, k))
    k, v = (_repeated(one, heads) for one in (k, v))
    scores = _product(tracer, q, mapped(k, lambda ids: ids.transpose(-1, -2)))  # (B, H, S, T)
    scores = tracer.join(scores.shape, [scores, *mask])
    return _product(tracer, tracer.mixed(scores, [inside], ATTENDED), v)


def _without_head_size(tracer: Tracer, value: Value) -> Value:
    """Channels inside of a single head are frozen: the scale of the scores is read from their number."""
    last = len(value.shape) - 1
    for ids in value.facets:
        if varying(ids) == {last}:
            tracer.labels.freeze(ids, HEAD_SIZE)
    return value


def _repeated(value: Value, heads: int) -> Value:
    """Key-value heads as often as query heads read them."""
    own = value.shape[-3] if len(value.shape) > 3 else heads
    if own in (1, heads):
        return value
    return mapped(value, lambda ids: ids.repeat_interleave(heads // own, -3))


# *** convolutions ***

_GROUPS_AT = {"convolution": 8, "_convolution": 8}


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(tracer: Tracer, node: fx.Node) -> Made:
    x, weight, *bias = tracer.tensors_of((*node.args, *node.kwargs.values()))
    shape, groups = tracer.shape(node), groups_of(node)
    axis = len(shape) - len(weight.shape) + 1  # 0 where the input has no batch axis
    W = _matrix(tracer, mapped(weight, lambda ids: ids.transpose(0, 1)) if is_transposed(node) else weight)
    if is_transposed(node) and groups > 1:
        tracer.freeze([x, W], GROUPED)
        return Value(shape)
    seen = tracer.vector(x, axis, "a convolution slides over them")
    C = Value((x.shape[axis],), () if seen is None else (seen,))
    made = _dense(tracer, C, W) if groups == 1 else _grouped(tracer, C, W, groups)
    for ids in made:
        tracer.labels.mark("convolved", ids)
    value = Value(shape, tuple(spread(ids, shape, axis) for ids in made), x.fixed and weight.fixed)
    rank = len(shape) - axis - 1
    return _biased(tracer, value, [mapped(one, lambda ids: ids.reshape(-1, *[1] * rank)) for one in bias])


def is_transposed(node: fx.Node) -> bool:
    name = node.target._schema.name  # type: ignore[union-attr]
    return "transpose" in name or (name.endswith("convolution") and bool(node.args[6]))


def groups_of(node: fx.Node) -> int:
    at = groups_position(node)
    found: Any = node.args[at] if len(node.args) > at else node.kwargs.get("groups", 1)
    return int(found)


def groups_position(node: fx.Node) -> int:
    name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    return _GROUPS_AT.get(name, 6)


def _matrix(tracer: Tracer, weight: Value) -> Value:
    """Outputs and inputs of a kernel (O, I): kernel positions are no channels."""
    kernel = set(range(2, len(weight.shape)))
    facets = [ids for ids in weight.facets if not varying(ids) <= kernel]
    facets = list(mix(tracer.labels, facets, kernel, "they vary with the position in a kernel"))
    for axis in sorted(kernel, reverse=True):
        facets = [ids.select(axis, 0) for ids in facets]
    return Value(weight.shape[:2], tuple(facets), weight.fixed)


def _dense(tracer: Tracer, C: Value, W: Value) -> tuple[Tensor, ...]:
    return contract(tracer.labels, W.shape, [C, W], {1})


def _grouped(tracer: Tracer, C: Value, W: Value, groups: int) -> tuple[Tensor, ...]:
    """Each channel by itself, or the same channels of every group."""
    o, i, c = W.along(0), W.along(1), C.along(0)
    if o is None or c is None:
        tracer.freeze([C, W], NO_CHANNEL)
        return ()
    outputs = o[:, 0].reshape(groups, -1)  # (groups, O / groups)
    if W.shape[1] == 1:
        tracer.labels.unite(outputs, c.reshape(groups, 1))
        return (o[:, 0],)
    inputs = c.reshape(groups, -1)  # (groups, I)
    tracer.labels.unite(inputs, inputs[:1])
    tracer.labels.unite(outputs, outputs[:1])
    if i is None:
        tracer.freeze([C], NO_CHANNEL)
    else:
        tracer.labels.unite(i[0], inputs[0])
        tracer.labels.mark("consumed", i)
    tracer.labels.mark("produced", o)
    return (settled(o[:, 0]),)
