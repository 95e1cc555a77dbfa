"""ONNX graphs small enough to read, written as ONNX text, with their weights as arrays."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

__all__ = ["K", "N", "model", "normal", "sparse", "write"]

K, N = 64, 128


def model(body: str, x: str = f"float16[b,{K}]", y: str = "float16[b,m]", **weights: np.ndarray) -> ir.Model:
    """The graph X -> Y with this body (`Y = MatMul(X, W)`), and its weights by name."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> main ({x} X) => ({y} Y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    for node in proto.graph.node:
        node.name = f"{node.op_type} to {node.output[0]}"
    return ir.from_proto(proto)


def write(graph: ir.Model, folder: Path) -> Path:
    path = folder / "model.onnx"
    ir.save(graph, path)
    return path


def normal(*shape: int, dtype: object = np.float16, seed: int = 0) -> np.ndarray:
    """Random values, none of which is zero in any type."""
    x = np.random.default_rng(seed).standard_normal(shape)
    return (x + 0.1 * np.sign(x)).astype(dtype)  # type: ignore[call-overload]


def sparse(*shape: int, axis: int = 0, dtype: object = np.float16) -> np.ndarray:
    """Random values, the two smallest of every four along the axis zero."""
    w = np.moveaxis(normal(*shape, dtype=np.float32), axis, -1)
    groups = w.reshape(-1, 4).copy()  # (G, 4)
    np.put_along_axis(groups, np.abs(groups).argsort(1)[:, :2], 0, 1)
    return np.ascontiguousarray(np.moveaxis(groups.reshape(w.shape), -1, axis)).astype(dtype)  # type: ignore[call-overload]
