"""Weights on a grid as ONNX Runtime's integer kernels take them: in place of a float product, one of codes.

    int8, activation by its own range      DynamicQuantizeLinear, MatMulInteger, Cast, Mul by both scales
    int8, activation by a known range      QuantizeLinear and DequantizeLinear around the operator (`qdq`)
    int4, activation in blocks             MatMulNBits, which rounds the activation itself
    an embedding of the same int8 codes    Gather of codes and of scales, Cast, Mul

ONNX Runtime makes one kernel of the first row, for float32 alone: in float16 a Cast stands before and behind it.
MatMulNBits has one for either. It reads no Gemm, so a bias is added after the product.
"""

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from compressor.backends import embeddings, qdq
from compressor.backends.codes import Coded, coded, constant, reads_rows, replace, store, take_names
from compressor.contractions import NBITS, SCALE, SITE, Contraction, contractions, packed
from compressor.errors import InternalError
from compressor.graph import Graph
from compressor.onnx_rounding import roundings
from compressor.quantization import Rounding

COMPUTE_INT8 = 4  # accuracy level of MatMulNBits: activations are rounded to 8 bits, and products are of integers


def quantize(model: ir.Model, graph: Graph) -> None:
    """Replace each product with a weight on a grid by one of its codes, in place."""
    rounded, weights = dict(roundings(model)), coded(graph)
    found = [one for one in contractions(model) if one.site in weights]
    own = {one.node: weights[one.site].as_in(one) for one in found}
    static = [one for one in found if _rounding(one, rounded)[1].kind == "static"]
    quantized: dict[ir.Node, tuple[ir.Value, ...]] = {}
    for one in found:
        maker, how = _rounding(one, rounded)
        if how.kind == "block":
            _four_bits(model, one, maker.inputs[0], own[one.node], how)
        elif how.kind == "tensor":
            if maker not in quantized:
                quantized[maker] = _quantized(model, maker)
            _eight_bits(model, one, quantized[maker], own[one.node])
    qdq.write(model, static, {one.node: own[one.node] for one in static}, signed=False)
    embeddings.quantize(model, graph)
    RemoveUnusedNodesPass()(model)
    take_names(model, found)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    model.graph.opset_imports.pop("compressor", None)


def _rounding(one: Contraction, rounded: Mapping[ir.Node, Rounding]) -> tuple[ir.Node, Rounding]:
    """The node that rounds its activation, and how."""
    maker = one.node.inputs[0].producer() if one.node.inputs[0] is not None else None
    if maker is None or maker not in rounded:
        raise InternalError(f"{one.site}: its activation is not rounded")
    return maker, rounded[maker]


def _quantized(model: ir.Model, rounding: ir.Node) -> tuple[ir.Value, ...]:
    """(codes, scale, zero) of an activation, made where it was to be rounded."""
    tape, x = Tape(), rounding.inputs[0]
    assert x is not None
    made = tape.op_multi_out("DynamicQuantizeLinear", [_in_float(tape, x)], num_outputs=3)
    model.graph.insert_before(rounding, tape.nodes)
    return tuple(made)


def _eight_bits(model: ir.Model, one: Contraction, activation: tuple[ir.Value, ...], of: Coded) -> None:
    weight, scale = store(model, one, of)
    (x, x_scale, x_zero), tape, node = activation, Tape(), one.node
    B = weight
    if reads_rows(one):
        B = tape.op("Transpose", [weight], {"perm": [1, 0]})
    product = tape.op("MatMulInteger", [x, B, x_zero], metadata_props={SITE: one.site})
    scales = tape.op("Mul", [x_scale, _in_float(tape, scale)])
    y = tape.op("Mul", [tape.op("Cast", [product], {"to": ir.DataType.FLOAT}), scales])
    replace(model, node, tape, y if scale.dtype == ir.DataType.FLOAT else tape.op("Cast", [y], {"to": scale.dtype}))


def _in_float(tape: Tape, x: ir.Value) -> ir.Value:
    return tape.op("Cast", [x], {"to": ir.DataType.FLOAT}) if x.dtype == ir.DataType.FLOAT16 else x


def _four_bits(model: ir.Model, one: Contraction, x: ir.Value | None, of: Coded, rounding: Rounding) -> None:
    m, d = of.codes.shape
    weight = constant(model, f"{one.value.name}.codes", packed(of.codes, rounding.group))
    scale = constant(model, f"{weight.name}{SCALE}", of.scale)
    attributes = {"K": d, "N": m, "bits": 4, "block_size": rounding.group, "accuracy_level": COMPUTE_INT8}
    tape = Tape()
    props = {SITE: one.site}
    y = tape.op(NBITS, [x, weight, scale], attributes, domain="com.microsoft", metadata_props=props)
    replace(model, one.node, tape, y)
