"""Weights on a grid as ONNX Runtime's integer kernels take them: in place of a float product, one of codes.

    int8, activation by its own range      DynamicQuantizeLinear, MatMulInteger, Cast, Mul by both scales
    int4, activation in blocks             MatMulNBits, which rounds the activation itself
    an embedding of the same int8 codes    Gather of codes and of scales, Cast, Mul

ONNX Runtime makes one kernel of the first row. MatMulNBits reads no Gemm, so a bias is added after the product.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from compressor.contractions import NBITS, SCALE, SITE, Contraction, contractions, packed
from compressor.onnx_rounding import roundings
from compressor.quantization import Grid, Rounding

COMPUTE_INT8 = 4  # accuracy level of MatMulNBits: activations are rounded to 8 bits, and products are of integers


def quantize(model: ir.Model, grids: Mapping[str, Grid]) -> None:
    """Replace each product with a weight on a grid by one of its codes, in place."""
    rounded = dict(roundings(model))
    found = [one for one in contractions(model) if one.site in grids]
    codes = {one.site: _codes(one, grids[one.site]) for one in found}
    quantized: dict[ir.Node, tuple[ir.Value, ...]] = {}
    for one in found:
        maker = one.node.inputs[0].producer() if one.node.inputs[0] is not None else None
        assert maker in rounded, f"{one.site}: its activation is not rounded"
        if rounded[maker].kind == "block":
            _four_bits(model, one, maker.inputs[0], codes[one.site], grids[one.site], rounded[maker])
        else:
            if maker not in quantized:
                quantized[maker] = _quantized(model, maker)
            _eight_bits(model, one, quantized[maker], codes[one.site], grids[one.site])
    RemoveUnusedNodesPass()(model)
    for name in sorted({one.site for one in found} | {one.value.name or "" for one in found}):
        _take_name(model, name)
    model.graph.opset_imports.setdefault("com.microsoft", 1)
    model.graph.opset_imports.pop("compressor", None)


def _codes(one: Contraction, grid: Grid) -> np.ndarray:
    """The codes (m, d) of a matrix in the file."""
    W = torch.from_numpy(one.along_last().astype(np.float32))
    return grid.codes(W[None])[0].numpy()


def _quantized(model: ir.Model, rounding: ir.Node) -> tuple[ir.Value, ...]:
    """(codes, scale, zero) of an activation, made where it was to be rounded."""
    tape = Tape()
    made = tape.op_multi_out("DynamicQuantizeLinear", [rounding.inputs[0]], num_outputs=3)
    model.graph.insert_before(rounding, tape.nodes)
    return tuple(made)


def _eight_bits(
    model: ir.Model, one: Contraction, activation: tuple[ir.Value, ...], codes: np.ndarray, grid: Grid
) -> None:
    weight, scale = _store(model, one, codes, grid)
    (x, x_scale, x_zero), tape, node = activation, Tape(), one.node
    B = weight
    if _reads_rows(one):
        B = tape.op("Transpose", [weight], {"perm": [1, 0]})
    product = tape.op("MatMulInteger", [x, B, x_zero], metadata_props={SITE: one.site})
    y = tape.op("Mul", [tape.op("Cast", [product], {"to": ir.DataType.FLOAT}), tape.op("Mul", [x_scale, scale])])
    _replace(model, node, tape, y)


def _four_bits(
    model: ir.Model, one: Contraction, x: ir.Value | None, codes: np.ndarray, grid: Grid, rounding: Rounding
) -> None:
    m, d = codes.shape
    weight = _constant(model, f"{one.value.name}.codes", packed(codes, rounding.group))
    scale = _constant(model, f"{weight.name}{SCALE}", grid.scale[0].numpy())
    attributes = {"K": d, "N": m, "bits": 4, "block_size": rounding.group, "accuracy_level": COMPUTE_INT8}
    tape = Tape()
    props = {SITE: one.site}
    y = tape.op(NBITS, [x, weight, scale], attributes, domain="com.microsoft", metadata_props=props)
    _replace(model, one.node, tape, y)


def _reads_rows(one: Contraction) -> bool:
    """Whether the stored weight is (m, d), as it is where an embedding reads it or a Gemm transposes it."""
    return _table(one) is not None or one.axis % 2 == 1


def _table(one: Contraction) -> ir.Value | None:
    """The weight itself, where the exporter has given the product a small transposed copy of it, for others to read."""
    graph = one.node.graph
    assert isinstance(graph, ir.Graph)
    table = graph.initializers.get(one.site)
    return None if table is one.value else table


def _store(model: ir.Model, one: Contraction, codes: np.ndarray, grid: Grid) -> tuple[ir.Value, ir.Value]:
    """The codes as the weight lies in the file, stored once however often it is read, and their scale (m,)."""
    source = _table(one) or one.value
    name = f"{source.name}.codes"
    known = model.graph.initializers
    if name in known:
        return known[name], known[f"{name}{SCALE}"]
    weight = _constant(model, name, codes if _reads_rows(one) else codes.T)
    scale = _constant(model, f"{name}{SCALE}", grid.scale[0, :, 0].numpy())
    for node, _ in list(source.uses()):
        if node.op_type == "Gather":
            _lookup(model, node, weight, scale)
    return weight, scale


def _lookup(model: ir.Model, node: ir.Node, weight: ir.Value, scale: ir.Value) -> None:
    """An embedding, of the codes."""
    tape, ids = Tape(), node.inputs[1]
    axis = _constant(model, f"{weight.name}.last", np.array([-1], np.int64))
    rows = tape.op("Cast", [tape.op("Gather", [weight, ids], {"axis": 0})], {"to": ir.DataType.FLOAT})
    y = tape.op("Mul", [rows, tape.op("Unsqueeze", [tape.op("Gather", [scale, ids], {"axis": 0}), axis])])
    _replace(model, node, tape, y)


def _replace(model: ir.Model, node: ir.Node, tape: Tape, y: ir.Value) -> None:
    """Put the tape where the node was; a Gemm's bias is added after."""
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        y = tape.op("Add", [y, node.inputs[2]])
    [old] = node.outputs
    y.type, y.shape = old.type, old.shape
    model.graph.insert_before(node, tape.nodes)
    name = old.name
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    old.name, y.name = f"{name}.float", name
    model.graph.remove(node, safe=True)


def _constant(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(values), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _take_name(model: ir.Model, name: str) -> None:
    """The codes are called as the weight was, once that has gone."""
    known = model.graph.initializers
    if name not in known and f"{name}.codes" in known:
        known[f"{name}.codes"].name = name
        known[f"{name}.codes{SCALE}"].name = f"{name}{SCALE}"
