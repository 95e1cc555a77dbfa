"""Static 8 bits in the form that every runtime reads: QuantizeLinear and DequantizeLinear around what runs on codes.

    an activation    QuantizeLinear, DequantizeLinear; unsigned codes, or signed ones with zero 0
    a weight         its codes, DequantizeLinear with a scale for each output
    a bias           for ONNX Runtime: 32-bit codes on the product's own grid, as its kernels add them

A runtime fuses an operator between them into one kernel for codes; what it does not fuse, it computes in floats. Scales
of activations are scalars, and zero points are always there: ONNX Runtime fuses neither sums nor Gemms without.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from compressor.backends import embeddings
from compressor.backends.codes import Coded, coded, constant, normal, reads_rows, store, take_names, take_place
from compressor.contractions import Contraction, contractions
from compressor.errors import InternalError
from compressor.graph import Graph
from compressor.onnx_rounding import roundings
from compressor.quantization import Rounding

MIDDLE = 128


def quantize(model: ir.Model, graph: Graph, *, signed: bool) -> None:
    """Replace each product with a weight on a grid, and each rounded activation, by ones of codes, in place."""
    weights = coded(graph)
    found = [one for one in contractions(model) if one.site in weights]
    write(model, found, {one.node: weights[one.site].as_in(one) for one in found}, signed=signed)
    embeddings.quantize(model, graph, whole=signed)
    RemoveUnusedNodesPass()(model)
    take_names(model, found)
    model.graph.opset_imports.pop("compressor", None)


def write(model: ir.Model, found: Sequence[Contraction], weights: Mapping[ir.Node, Coded], *, signed: bool) -> None:
    """Put the codes of these weights, and of all activations that are rounded beforehand, into a model, in place.

    signed: whether activations have signed codes, and biases stay in floating point.
    """
    static = {node: how for node, how in roundings(model) if how.kind == "static"}
    for one in found:
        maker = one.node.inputs[0].producer() if one.node.inputs[0] is not None else None
        if maker is None or maker not in static:
            raise InternalError(f"{one.site}: its activation is not rounded")
        _weight(model, one, weights[one.node], signed)
        if not signed:
            _bias(model, one, static[maker].scale * weights[one.node].scale[:, 0])
    for node, how in static.items():
        _activation(model, node, how, signed)


def _weight(model: ir.Model, one: Contraction, weight: Coded, signed: bool) -> None:
    codes, scale = store(model, one, weight, whole=signed)
    tape, node = Tape(), one.node
    transposed = bool(node.attributes.get_int("transB", 0))
    zero = _zeros(model, len(weight.scale), np.int8)
    turn = one.op != "Conv" and reads_rows(one) != transposed
    # TensorRT takes stored codes before DequantizeLinear alone: those that an embedding shares are turned after it.
    late = turn and signed and any(user.op_type == "DequantizeLinear" for user, _ in codes.uses())
    if turn and not late:
        codes = tape.op("Transpose", [codes], {"perm": [1, 0]})
    is_rows = one.op == "Conv" or transposed != late
    made = tape.op("DequantizeLinear", [codes, scale, zero], {"axis": 0 if is_rows else 1})
    node.replace_input_with(1, tape.op("Transpose", [made], {"perm": [1, 0]}) if late else made)
    model.graph.insert_before(node, tape.nodes)


def _bias(model: ir.Model, one: Contraction, scale: np.ndarray) -> None:
    """The bias as 32-bit codes of a given scale (m,), where the operator adds it itself."""
    bias = one.node.inputs[2] if len(one.node.inputs) > 2 else None
    if bias is None or bias.const_value is None or bias.const_value.size != len(scale):
        return
    limits, name = np.iinfo(np.int32), f"{one.site}.bias"
    codes = np.clip(np.rint(bias.const_value.numpy().ravel() / scale.astype(np.float64)), limits.min, limits.max)
    if name in model.graph.initializers:
        name = f"{name}.{one.node.name or len(model.graph.initializers)}"
    tape = Tape()
    stored = constant(model, f"{name}.codes", codes.astype(np.int32))
    of = constant(model, f"{name}.scale", scale.astype(np.float32))
    zero = _zeros(model, len(scale), np.int32)
    one.node.replace_input_with(2, tape.op("DequantizeLinear", [stored, of, zero], {"axis": 0}))
    model.graph.insert_before(one.node, tape.nodes)


def _zeros(model: ir.Model, n: int, kind: type) -> ir.Value:
    """Zero points that are all zero, shared by all that need as many."""
    name = f"zeros.{np.dtype(kind)}.{n}"
    return model.graph.initializers.get(name) or constant(model, name, np.zeros(n, kind))


def _activation(model: ir.Model, node: ir.Node, how: Rounding, signed: bool) -> None:
    """Codes in place of a rounding."""
    if signed and how.zero != MIDDLE:
        raise InternalError(f"signed codes need {MIDDLE} for zero, not {how.zero}")
    [old], x = node.outputs, node.inputs[0]
    kind = np.int8 if signed else np.uint8
    tape = Tape()
    dtype = (x.dtype if x is not None and x.dtype else ir.DataType.FLOAT).numpy()
    scale = constant(model, f"{old.name}.scale", normal(np.array(how.scale, np.float32), dtype))
    zero = constant(model, f"{old.name}.zero", np.array(0 if signed else how.zero, kind))
    y = tape.op("DequantizeLinear", [tape.op("QuantizeLinear", [x, scale, zero]), scale, zero])
    take_place(model, node, tape, y)
