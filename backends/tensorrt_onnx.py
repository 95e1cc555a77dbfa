"""The ONNX file as TensorRT should read it: weights as plain stored tensors, one type per product, layers with names.

TensorRT builds what the graph says. Whether it looks for 2:4 before or after it folds a Transpose is not documented, so
nothing is left to fold; a weight that a quantizer made keeps its DequantizeLinear alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compressor.backends.constants import MOVES, evaluate, root
from compressor.backends.eligibility import CONTRACTIONS, M, N, most, nonzero, weight_axes
from compressor.contractions import SITE
from compressor.errors import BackendError
from compressor.shapes import Range

Profile = dict[str, list[list[int]]]  # input -> [least, usual, most]


def prepare(model: ir.Model) -> None:
    """Make a model ready for TensorRT, in place."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type in CONTRACTIONS and node.domain == ""]
    folded: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        _fold_weight(model, node, folded)
    RemoveUnusedNodesPass()(model)
    for value, source in folded.items():
        _take_name(model, value, source)
    for node in nodes:
        _one_type(node)
        _plain_zeros(node)
    _name(nodes)


def profiles(model: ir.Model, shapes: Mapping[str, Range]) -> list[Profile]:
    """Least, usual and most of each input's shape; no profile when none varies. Raises BackendError."""
    found = {value.name or "": _ranges(value, shapes) for value in model.graph.inputs if _varies(value)}
    if not found:
        return []
    return [{name: [[length[i] for length in lengths] for i in range(3)] for name, lengths in found.items()}]


def _varies(value: ir.Value) -> bool:
    return value.shape is not None and not value.shape.is_static()


def _ranges(value: ir.Value, shapes: Mapping[str, Range]) -> list[Range]:
    lengths = []
    for size in value.shape or ():
        if not isinstance(size, int) and str(size.value) not in shapes:
            raise BackendError(
                f"no length is known for the axis {size.value} of {value.name}", hint=f"--shape {size.value}=1:8:32"
            )
        lengths.append((size, size, size) if isinstance(size, int) else shapes[str(size.value)])
    return lengths


# *** folding ***


def _fold_weight(model: ir.Model, node: ir.Node, folded: dict[ir.Value, ir.Value]) -> None:
    """Replace what makes a weight by its result; a tied weight that is dense stays as it is stored."""
    for position, axis in weight_axes(node):
        value = node.inputs[position]
        values = evaluate(value)
        if value is None or values is None or values.ndim < 2:
            continue
        target = _to_fold(value)
        source = root(value)
        is_tied = target is value and len(source.uses()) > 1
        if not target.is_initializer() and not (is_tied and not _is_sparse(values, axis % values.ndim)):
            new = _stored(model, f"{source.name}.folded", evaluate(target))
            ir.convenience.replace_all_uses_with(target, new)
            folded[new] = source
        return


def _to_fold(value: ir.Value) -> ir.Value:
    """The weight itself, or what goes into its DequantizeLinear."""
    inner = value
    while (maker := inner.producer()) is not None and maker.op_type in (*MOVES, "Cast", "DequantizeLinear"):
        assert maker.inputs[0] is not None
        inner = maker.inputs[0]
        if maker.op_type == "DequantizeLinear":
            return inner
    return value


def _is_sparse(values: np.ndarray, axis: int) -> bool:
    return values.shape[axis] % M == 0 and not (most(nonzero(values), axis) > N).any()


def _stored(model: ir.Model, name: str, values: np.ndarray | None) -> ir.Value:
    assert values is not None
    tensor = ir.tensor(np.ascontiguousarray(values), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _take_name(model: ir.Model, value: ir.Value, source: ir.Value) -> None:
    """A folded weight is called as the one it was made of, once that has gone."""
    if source.name and source.name not in model.graph.initializers:
        value.name = source.name


# *** types, zeros, names ***


def _one_type(node: ir.Node) -> None:
    """Give stored floating operands the type of the activation: folding a BatchNorm in bfloat16 leaves float32."""
    activation = next((v for v in node.inputs if v is not None and v.const_value is None and v.dtype is not None), None)
    if activation is None or activation.dtype is None or not activation.dtype.is_floating_point():
        return
    for value in node.inputs:
        stored = value.const_value if value is not None else None
        if value is None or stored is None or stored.dtype == activation.dtype or not stored.dtype.is_floating_point():
            continue
        value.const_value = ir.tensor(stored.numpy().astype(activation.dtype.numpy()), name=value.name)
        value.dtype = activation.dtype


def _plain_zeros(node: ir.Node) -> None:
    """Turn -0.0 into 0.0 in weights: a builder may well compare bits."""
    for value in node.inputs[:2]:
        stored = value.const_value if value is not None else None
        if value is None or stored is None or not stored.dtype.is_floating_point():
            continue
        values = stored.numpy()
        if (np.signbit(values) & (values == 0)).any():
            value.const_value = ir.tensor(np.where(values == 0, values.dtype.type(0), values), name=value.name)


def _name(nodes: Sequence[ir.Node]) -> None:
    """Call each contraction by its site, so that the engine's layers and the builder's log tell which it is."""
    seen: dict[str, int] = {}
    for node in nodes:
        site = node.metadata_props.get(SITE)
        if not site:
            continue
        name = layer_name(site)
        seen[name] = seen.get(name, 0) + 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"


def layer_name(site: str) -> str:
    """What the layer of a site is called."""
    return site.removesuffix(".weight")
