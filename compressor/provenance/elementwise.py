"""Rules of operators that work element by element and are not marked as such, and of additions that join streams."""

from typing import Any

from torch import Tensor, fx

from compressor.provenance.facets import Value, core, varying
from compressor.provenance.tracer import Made, Tracer, rule


@rule("where", "masked_fill", "hardswish", "hardsigmoid", "prelu", "__and__", "__or__", "__xor__", "addcmul", "addcdiv")
def elementwise(tracer: Tracer, node: fx.Node) -> Made:
    return tracer.join(tracer.shape(node), tracer.tensors(node))


@rule("add", "add_")
def add(tracer: Tracer, node: fx.Node) -> Made:
    """Two activations that are added are a stream that blocks write to, unless they are of the same channels anyway."""
    values = tracer.tensors(node)
    made = tracer.join(tracer.shape(node), values)
    activations = [value for value in values if not value.fixed]
    for ids in made.facets:
        if len({_first_label(value, ids) for value in activations}) > 1:
            tracer.labels.mark("added", ids)
    return made


def _first_label(value: Value, made: Tensor) -> int:
    """Of the channels of a value along the last axis of what is made of it; 0 where there are none."""
    axis = max(varying(made)) - made.ndim
    ids = value.along(axis) if -axis <= len(value.shape) else None
    return 0 if ids is None else int(core(ids).flatten()[0])


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(tracer: Tracer, node: fx.Node) -> Made:
    """A tensor of the shape of another, which shrinks with it."""
    return tracer.value(node.args[0])


@rule("zeros", "ones", "full", "empty")
def made(tracer: Tracer, node: fx.Node) -> Made:
    return _spelled_out(tracer, node, node.args[0])


@rule("new_zeros", "new_ones", "new_full", "new_empty")
def made_beside(tracer: Tracer, node: fx.Node) -> Made:
    return _spelled_out(tracer, node, node.args[1])


def _spelled_out(tracer: Tracer, node: fx.Node, sizes: Any) -> Made:
    shape = tracer.shape(node)
    axes = [axis for axis, size in enumerate(sizes) if isinstance(size, int)]
    return Value(shape, tracer.sizes(shape, axes), fixed=True)
