"""The value behind a chain of operators that begins with a stored tensor: what a runtime folds before it runs."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from compressor.errors import BackendError

_FLOAT8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)

Array = np.ndarray


def evaluate(value: ir.Value | None) -> Array | None:
    """The values, or None when they are not constant or not behind a chain of PATH.

    Behind a DequantizeLinear they are the codes less their zero point: zero exactly where the weight is zero.
    """
    if value is None:
        return None
    stored = ir.convenience.get_const_tensor(value)
    if stored is not None:
        return _numpy(value.name or "", stored)
    node = value.producer()
    if node is None or node.op_type not in PATH:
        return None
    x = evaluate(node.inputs[0])
    return None if x is None else PATH[node.op_type](node, x)


def root(value: ir.Value) -> ir.Value:
    """The tensor that a chain of PATH begins with."""
    node = value.producer()
    while node is not None and node.op_type in PATH and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _numpy(name: str, stored: ir.TensorProtocol) -> Array:
    try:
        return stored.numpy()
    except (OSError, ValueError) as error:
        hint = "the .onnx file and its data files side by side, whole"
        raise BackendError(f"cannot read the weight {name}", found=str(error), hint=hint) from error


# *** layout and type ***


def _transpose(node: ir.Node, x: Array) -> Array:
    return np.transpose(x, node.attributes.get_ints("perm", tuple(reversed(range(x.ndim)))))


def _cast(node: ir.Node, x: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(ir.DataType(node.attributes.get_int("to")).numpy())


def _reshape(node: ir.Node, x: Array) -> Array | None:
    shape = evaluate(node.inputs[1])
    if shape is None:
        return None
    return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])


def _squeeze(node: ir.Node, x: Array) -> Array | None:
    axes = evaluate(node.inputs[1]) if len(node.inputs) > 1 else np.flatnonzero(np.array(x.shape) == 1)
    return None if axes is None else np.squeeze(x, tuple(int(i) for i in axes))


def _unsqueeze(node: ir.Node, x: Array) -> Array | None:
    axes = evaluate(node.inputs[1])
    return None if axes is None else np.expand_dims(x, tuple(int(i) for i in axes))


# *** quantization ***


def code_type(node: ir.Node) -> np.dtype | None:
    """The type a QuantizeLinear makes; None when its zero point is not stored."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero = ir.convenience.get_const_tensor(node.inputs[2])
        return None if zero is None else np.dtype(zero.dtype.numpy())
    named = node.attributes.get_int("output_dtype", 0)
    return np.dtype(ir.DataType(named).numpy() if named else np.uint8)


def _quantize(node: ir.Node, x: Array) -> Array | None:
    scale, kind = evaluate(node.inputs[1]), code_type(node)
    if scale is None or kind is None:
        return None
    scaled = x.astype(np.float32) / _along(scale.astype(np.float32), node, x)
    if kind in _FLOAT8:
        return scaled.astype(kind)
    zero = evaluate(node.inputs[2]) if len(node.inputs) > 2 else None
    offset = 0 if zero is None else _along(zero.astype(np.float32), node, x)
    limits = ml_dtypes.iinfo(kind)
    return np.clip(np.rint(scaled) + offset, limits.min, limits.max).astype(kind)


def _dequantize(node: ir.Node, x: Array) -> Array | None:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return x
    zero = evaluate(node.inputs[2])
    if zero is None:
        return None
    return x if not zero.astype(np.float32).any() else x.astype(np.int32) - _along(zero.astype(np.int32), node, x)


def _along(parameter: Array, node: ir.Node, x: Array) -> Array:
    """A scale or zero point, shaped to broadcast along the axis it belongs to."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = node.attributes.get_int("axis", 1) % x.ndim
    if parameter.ndim > 1:  # one per block
        return np.repeat(parameter, x.shape[axis] // parameter.shape[axis], axis)
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


MOVES: dict[str, Callable[[ir.Node, Array], Array | None]] = {
    "Transpose": _transpose,
    "Identity": lambda node, x: x,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
"""Operators that keep every value, and may move it."""

PATH = {**MOVES, "Cast": _cast, "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
"""Operators that runtimes look through on their way from a weight to its user."""
