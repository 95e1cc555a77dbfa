"""Weights as codes in an ONNX file: read from the graph, stored once for all their readers, called by their names.

Between the graph and the file an exporter may multiply a weight's rows, as it does where it folds a normalization into
a convolution. Codes stay what they are then; their scales take the factor.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from compressor.contractions import SCALE, Contraction
from compressor.errors import InternalError
from compressor.graph import Graph
from compressor.quantization import largest_code


@dataclass(frozen=True)
class Coded:
    """A weight's codes (m, d), int8, and their scales (m, n), positive: float32, or as the file has them."""

    codes: np.ndarray
    scale: np.ndarray

    def as_in(self, file: Contraction) -> "Coded":
        """The same with each row's factor in the file, and scales in the file's own type.

        Raises InternalError when the file's rows are no such rows.
        """
        written, mine = file.along_last(), self.codes * self._spread(self.scale)
        kind, written = written.dtype, written.astype(np.float32).reshape(mine.shape)
        energy = (mine * mine).sum(1)
        factor = (written * mine).sum(1) / np.where(energy > 0, energy, 1)
        scale = np.abs(factor)[:, None] * self.scale
        if (np.abs(written - factor[:, None] * mine).max(1) > _slack(kind, factor, scale.max(1))).any():
            raise InternalError(f"{file.site} has left its grid on its way into the file")
        codes = self.codes * np.sign(factor).astype(np.int8)[:, None]  # none are left of a row that became zero
        return Coded(codes, np.where(scale > 0, scale, 1)).in_dtype(kind)

    def in_dtype(self, dtype: np.dtype) -> "Coded":
        """The same with scales of a floating type, and none below its normal numbers: runtimes may take it for zero.

        A row of such a scale is rounded anew, to the fewer codes that the least normal number leaves it.
        """
        scale = normal(self.scale, dtype)
        codes = np.rint(self.codes * self._spread(self.scale / scale.astype(np.float32)))
        return Coded(codes.astype(np.int8), scale)

    def _spread(self, x: np.ndarray) -> np.ndarray:
        """What belongs to each group of columns (m, n), for each column (m, d)."""
        return np.repeat(x, self.codes.shape[1] // x.shape[1], axis=1)


def normal(scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Positive scales in a floating type, those below its least normal number raised to that."""
    return np.maximum(scale, ml_dtypes.finfo(dtype).smallest_normal).astype(dtype)


def _slack(dtype: np.dtype, factor: np.ndarray, step: np.ndarray) -> np.ndarray:
    """How far a row of a file (m,) may be from its codes: what its type rounds off weights, factors and products."""
    kind = ml_dtypes.finfo(dtype)
    absolute = 1e-12 + float(kind.smallest_subnormal) * (1 + np.abs(factor))
    return (0.01 + 2 * largest_code(8) * float(kind.eps)) * step + absolute


def coded(graph: Graph) -> dict[str, Coded]:
    """Every weight of the graph that lies on a grid."""
    sites, found = {site.name for site in graph.sites}, {}
    for name, grid in graph.grids.items():
        if name not in sites:  # it is looked up (`embeddings`)
            continue
        found[name] = Coded(graph.codes(name).flatten(0, 1).numpy(), grid.scale.flatten(0, 1).numpy())
    return found


# *** in the file ***


def reads_rows(one: Contraction) -> bool:
    """Whether the stored weight is (m, d), as it is where an embedding reads it or a Gemm transposes it."""
    return table(one) is not None or one.axis % 2 == 1


def table(one: Contraction) -> ir.Value | None:
    """The weight itself, where the exporter has given the product a small transposed copy of it, for others to read."""
    graph = one.node.graph
    assert isinstance(graph, ir.Graph)
    found = graph.initializers.get(one.site)
    return None if found is one.value else found


def store(model: ir.Model, one: Contraction, weight: Coded, *, whole: bool = False) -> tuple[ir.Value, ir.Value]:
    """The codes as the weight lies in the file, stored once however often it is read, and their scale (m,).

    whole: whether an embedding of it looks up in floats, made of all codes, which TensorRT asks for.
    """
    source = table(one) or one.value
    name = f"{source.name}.codes"
    known = model.graph.initializers
    if name in known:
        return known[name], known[f"{name}{SCALE}"]
    codes = constant(model, name, _laid_out(one, weight.codes))
    scale = constant(model, f"{name}{SCALE}", weight.scale[:, 0])
    for node, _ in list(source.uses()):
        if node.op_type == "Gather":
            look_up(model, node, codes, scale, whole=whole)
    return codes, scale


def look_up(model: ir.Model, node: ir.Node, codes: ir.Value, scale: ir.Value, *, whole: bool) -> None:
    """An embedding, of the codes; whole: in floats, made of all of them."""
    (_lookup_in_floats if whole else _lookup)(model, node, codes, scale)


def _laid_out(one: Contraction, codes: np.ndarray) -> np.ndarray:
    if one.op == "Conv":
        shape = one.along_last().shape  # (m, *kernel, K)
        return np.moveaxis(codes.reshape(shape), -1, one.axis)
    return codes if reads_rows(one) else codes.T


def _lookup(model: ir.Model, node: ir.Node, weight: ir.Value, scale: ir.Value) -> None:
    tape, ids = Tape(), node.inputs[1]
    axis = constant(model, f"{weight.name}.last", np.array([-1], np.int64))
    rows = tape.op("Cast", [tape.op("Gather", [weight, ids], {"axis": 0})], {"to": scale.dtype})
    y = tape.op("Mul", [rows, tape.op("Unsqueeze", [tape.op("Gather", [scale, ids], {"axis": 0}), axis])])
    replace(model, node, tape, y)


def _lookup_in_floats(model: ir.Model, node: ir.Node, weight: ir.Value, scale: ir.Value) -> None:
    tape = Tape()
    node.replace_input_with(0, tape.op("DequantizeLinear", [weight, scale], {"axis": 0}))
    model.graph.insert_before(node, tape.nodes)


def replace(model: ir.Model, node: ir.Node, tape: Tape, y: ir.Value) -> None:
    """Put the tape where the node was; a Gemm's bias is added after."""
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        y = tape.op("Add", [y, node.inputs[2]])
    take_place(model, node, tape, y)


def take_place(model: ir.Model, node: ir.Node, tape: Tape, y: ir.Value) -> None:
    """Put the tape where the node was, and its y, under the same name, where the node's output was."""
    [old] = node.outputs
    y.type, y.shape = old.type, old.shape
    model.graph.insert_before(node, tape.nodes)
    name = old.name
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    old.name, y.name = f"{name}.float", name
    model.graph.remove(node, safe=True)


def constant(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.asarray(values, order="C"), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def take_names(model: ir.Model, found: Iterable[Contraction]) -> None:
    """Call the codes as the weights were, once those have gone."""
    known = model.graph.initializers
    for name in sorted({name for one in found for name in (one.site, one.value.name or "")}):
        if name not in known and f"{name}.codes" in known:
            known[f"{name}.codes"].name = name
            known[f"{name}.codes{SCALE}"].name = f"{name}{SCALE}"
