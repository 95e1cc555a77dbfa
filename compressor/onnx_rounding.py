"""The operator that stands for a rounded activation between torch's exporter and a backend: no runtime knows it."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import onnx
import onnx_ir as ir
import onnxscript
import torch

import compressor.rounded  # noqa: F401  registers the operator
from compressor.quantization import Rounding, RoundingKind

DOMAIN, OPERATOR = "compressor", "RoundActivation"

_Schema = onnx.defs.OpSchema
_KINDS = {"kind": "STRING", "scale": "FLOAT", "zero": "INT", "group": "INT"}
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


def translations() -> dict[Callable, Callable]:
    """For torch.onnx.export: our torch operator -> the function that writes it."""
    schema = _Schema(
        OPERATOR, DOMAIN, 1,
        inputs=[_Schema.FormalParameter("x", "T")],
        outputs=[_Schema.FormalParameter("y", "T")],
        type_constraints=[("T", _FLOATS, "")],
        attributes=[_Schema.Attribute(name, getattr(_Schema.AttrType, kind)) for name, kind in _KINDS.items()],
    )  # fmt: skip
    write = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), OPERATOR, schema)

    def translate(x: Any, kind: str, scale: float, zero: int, group: int) -> Any:
        return write(x, kind=kind, scale=scale, zero=zero, group=group)

    return {torch.ops.compressor.round_activation.default: translate}


def drop(model: ir.Model) -> None:
    """Take every such node out of a model, so that what was rounded is read as it is."""
    for node, _ in roundings(model):
        [x], [y] = node.inputs, node.outputs
        assert x is not None
        ir.convenience.replace_all_uses_with(y, x, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    model.graph.opset_imports.pop(DOMAIN, None)


def roundings(model: ir.Model) -> Iterator[tuple[ir.Node, Rounding]]:
    """Every such node of a model, with what it says."""
    for node in list(model.graph.all_nodes()):
        if (node.domain, node.op_type) == (DOMAIN, OPERATOR):
            a = node.attributes
            kind = cast(RoundingKind, a.get_string("kind"))
            yield node, Rounding(kind, a.get_float("scale", 1.0), a.get_int("zero", 0), a.get_int("group", 0))
