"""The weights of an ONNX file as its operators contract them, in floating point or as codes.

    Conv                      weight axis 1
    Gemm                      B axis 1 if transB else 0
    MatMul, MatMulInteger     B axis -2, or A axis -1 when the weight is A
    MatMulNBits               B axis -1, two 4-bit codes a byte

A weight behind a Transpose or a DequantizeLinear is read through it. The scale of a weight that is stored as codes is
called after it, with `.scale` at the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.errors import BackendError

SITE = "compressor.site"
SCALE = ".scale"
NBITS = "MatMulNBits"
INTEGER = "MatMulInteger"
FLOAT_OPERATORS = ("MatMul", "Gemm", "Conv")
OPERATORS = (*FLOAT_OPERATORS, INTEGER, NBITS)


@dataclass(frozen=True)
class Contraction:
    """A node that contracts a stored weight.

    site: the weight's name. node: what contracts it. value: the stored tensor, axis: the one that is contracted, as
    the node's operator defines it. scale: of its codes; None where the weight is stored in floating point.
    """

    site: str
    node: ir.Node
    value: ir.Value
    axis: int
    scale: ir.TensorProtocol | None = None

    @property
    def weight(self) -> ir.TensorProtocol:
        assert self.value.const_value is not None
        return self.value.const_value

    @property
    def op(self) -> str:
        return self.node.op_type

    @property
    def dtype(self) -> str:
        """The type of what is stored: `float32`, `int8`, `int4`."""
        if self.op == NBITS:
            return f"int{self.node.attributes.get_int('bits', 4)}"
        return str(np.dtype(self.weight.dtype.numpy()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as the operator contracts it."""
        if self.op == NBITS:
            return (self.node.attributes.get_int("N", 0), self.node.attributes.get_int("K", 0))
        return tuple(self.weight.shape.numpy())

    def along_last(self) -> np.ndarray:
        """The weight, or its codes, with the contracted axis moved last. Raises BackendError without its bytes."""
        values = self._read(self.weight)
        return unpacked(values)[:, : self.shape[1]] if self.op == NBITS else np.moveaxis(values, self.axis, -1)

    def scales(self) -> np.ndarray | None:
        """The scales of the codes; None where there are no codes."""
        return None if self.scale is None else self._read(self.scale)

    def _read(self, tensor: ir.TensorProtocol) -> np.ndarray:
        try:
            return tensor.numpy()
        except (OSError, ValueError) as error:
            hint = "model.onnx and model.onnx.data side by side, whole"
            raise BackendError(f"cannot read the weight {self.site}", found=str(error), hint=hint) from error


def contractions(model: ir.Model) -> Iterator[Contraction]:
    """Every node that contracts a stored weight, in graph order, with the axis its operator contracts."""
    for node in model.graph.all_nodes():
        if node.op_type in OPERATORS and node.domain == ("com.microsoft" if node.op_type == NBITS else ""):
            yield from _contraction(model, node)


def _contraction(model: ir.Model, node: ir.Node) -> Iterator[Contraction]:
    for position, axis in weight_axes(node):
        value, axis = through(node.inputs[position], axis)
        if value is not None and value.const_value is not None and len(value.const_value.shape) >= 2:
            scale = model.graph.initializers.get(f"{value.name}{SCALE}")
            name = node.metadata_props.get(SITE) or value.name or ""
            yield Contraction(name, node, value, axis, scale.const_value if scale else None)
            return


def weight_axes(node: ir.Node) -> list[tuple[int, int]]:
    """(input position, contracted axis) pairs to look for a stored weight at, the usual place first."""
    if node.op_type == "Conv":
        return [(1, 1)]
    if node.op_type == NBITS:
        return [(1, -1)]
    if node.op_type in ("MatMul", INTEGER):
        return [(1, -2), (0, -1)]
    transposed = {name: bool(node.attributes.get_int(name, 0)) for name in ("transA", "transB")}
    return [(1, 1 if transposed["transB"] else 0), (0, 0 if transposed["transA"] else 1)]


def through(value: ir.Value | None, axis: int) -> tuple[ir.Value | None, int]:
    """The value behind any Transpose and DequantizeLinear, and where an axis lies in it."""
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type not in ("Transpose", "DequantizeLinear"):
            return value, axis
        value = maker.inputs[0]
        if maker.op_type == "Transpose":
            rank = len(value.shape) if value is not None and value.shape is not None else 2
            axis = maker.attributes.get_ints("perm", tuple(reversed(range(rank))))[axis]
    return value, axis


# *** four bits ***


def packed(codes: np.ndarray, group: int) -> np.ndarray:
    """Codes (m, d) from -8 to 7 as MatMulNBits stores them: (m, d / group, group / 2) uint8, 8 more, low half first."""
    m, d = codes.shape
    halves = (codes + 8).astype(np.uint8).reshape(m, d // group, group // 2, 2)
    return halves[..., 0] | halves[..., 1] << 4


def unpacked(bytes_: np.ndarray) -> np.ndarray:
    """The codes (m, d) again."""
    halves = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1)
    return halves.reshape(len(bytes_), -1).astype(np.int8) - 8
