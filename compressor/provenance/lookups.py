"""Rules of operators that take rows by number."""

import operator
from typing import Any

import torch
from torch import fx

from compressor.provenance.facets import Value, settled, varying
from compressor.provenance.tracer import RULES, Made, Tracer, rule

LOOKED_UP = "they are looked up by number"


@rule("embedding")
def embedding(tracer: Tracer, node: fx.Node) -> Made:
    """A row for each number: columns are channels, rows are the vocabulary."""
    weight, shape = tracer.value(node.args[0]), tracer.shape(node)
    for ids in weight.facets:
        tracer.labels.mark("rows" if varying(ids) == {0} else "produced", ids)
    weight = tracer.mixed(weight, [0], LOOKED_UP)
    facets = [ids for ids in weight.facets if varying(ids) == {1}]
    return Value(shape, tuple(ids[0].expand(shape) for ids in facets))


@rule("index")
def index(tracer: Tracer, node: fx.Node) -> Made:
    """Along the axes that are taken from by number channels stay; along all others they pass."""
    numbers: Any = node.args[1]
    axes = [axis for axis, one in enumerate(numbers) if one is not None]
    value = tracer.mixed(tracer.value(node.args[0]), axes, LOOKED_UP)
    shape = tracer.shape(node)
    taken = [None if one is None else torch.zeros(tracer.value(one).shape, dtype=torch.long) for one in numbers]
    facets = [ids for ids in value.facets if not varying(ids) & set(axes)]
    made = [settled(torch.ops.aten.index.Tensor(ids, taken)) for ids in facets]
    return Value(shape, tuple(made), value.fixed)


@rule("index_select")
def index_select(tracer: Tracer, node: fx.Node) -> Made:
    value, shape = tracer.value(node.args[0]), tracer.shape(node)
    axis = tracer.argument(node, 1, "dim") % len(value.shape)
    value = tracer.mixed(value, [axis], LOOKED_UP)
    facets = [ids for ids in value.facets if axis not in varying(ids)]
    return Value(shape, tuple(ids.narrow(axis, 0, 1).expand(shape) for ids in facets), value.fixed)


def item(tracer: Tracer, node: fx.Node) -> Made:
    """One of several outputs."""
    made = tracer.values[node.args[0]]  # type: ignore[index]
    return made[node.args[1]] if isinstance(made, tuple) else None  # type: ignore[index]


RULES[operator.getitem] = item
