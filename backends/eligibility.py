"""Which weights of an ONNX file TensorRT can multiply with 2:4 kernels, and which rule the others break.

A weight is judged as the engine reads it: what stands between it and its operator (`constants.PATH`, Constant nodes) is
computed first. So a pattern that only a Transpose brings about is seen, and one that ends at the int8 codes too.

Known holes. TensorRT does not document how it treats stacked (3-D) weights and grouped convolutions: stacks are
refused, groups are judged by their own channels. LSTM, GRU, RNN, Einsum and ConvTranspose have no sparse kernel and are
refused. A weight that any other operator makes, or inside a called function, is not judged. Whether the builder then
*chooses* a sparse kernel is its own measurement.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor import contractions
from compressor.backends.constants import MOVES, PATH, code_type, evaluate, root
from compressor.contractions import SITE
from compressor.engine import Verdict

N, M = 2, 4
SPARSE_DTYPES = {"float16": 16, "bfloat16": 16, "int8": 32, "float8_e4m3fn": 32}
"""Types with 2:4 kernels, and the multiple of K and of the outputs that NVIDIA advises for them."""

MEANT = 0.25
"""Share of zeros from which a weight counts as meant to be sparse: what is trained dense has next to none."""

CONTRACTIONS = ("MatMul", "Gemm", "Conv")
_NO_KERNEL = {"ConvTranspose": 1, "Einsum": 1, "LSTM": 1, "GRU": 1, "RNN": 1}  # operator -> where its weight comes in
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def check(model: ir.Model) -> tuple[Verdict, ...]:
    """One verdict per contraction of a stored weight, in graph order."""
    return tuple(_judge(read) for read in _reads(model))


def weight_axes(node: ir.Node) -> list[tuple[int, int]]:
    """(input position, contracted axis) pairs to look for a stored weight at, the usual place first."""
    if node.op_type in _NO_KERNEL:
        return [(_NO_KERNEL[node.op_type], -1)]
    return contractions.weight_axes(node)


# *** reading a weight as its operator does ***


@dataclass(frozen=True)
class _Read:
    """One operator's weight: its name, the values as the operator sees them, and the axis it contracts.

    dtype: what is multiplied. users: other operators that read the stored tensor.
    """

    op: str
    site: str
    values: np.ndarray
    axis: int
    dtype: str
    users: tuple[str, ...]


def _reads(model: ir.Model) -> Iterator[_Read]:
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and node.op_type in (*CONTRACTIONS, *_NO_KERNEL):
            yield from _read(node)


def _read(node: ir.Node) -> Iterator[_Read]:
    for position, axis in weight_axes(node):
        value = node.inputs[position] if position < len(node.inputs) else None
        values = evaluate(value)
        if value is None or values is None or values.ndim < 2:
            continue
        stored = root(value)
        site = node.metadata_props.get(SITE) or stored.name or node.name or ""
        others = {user.op_type for user, _ in stored.uses()} - {*CONTRACTIONS, *PATH}
        yield _Read(node.op_type, site, values, axis % values.ndim, _dtype(node, position), tuple(sorted(others)))
        return


def _dtype(node: ir.Node, position: int) -> str:
    """The type that is multiplied: of the codes when both operands are dequantized, else of the operands."""
    codes = [_codes(value) for value in node.inputs[:2]]
    return codes[position] or "unknown" if all(codes) else _declared(node.inputs[position])


def _codes(value: ir.Value | None) -> str | None:
    """The type of the codes, when a value comes out of a DequantizeLinear."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    source = node.inputs[0].producer()
    if source is None or source.op_type != "QuantizeLinear":
        return _declared(node.inputs[0])
    kind = code_type(source)
    return "unknown" if kind is None else kind.name


def _declared(value: ir.Value | None) -> str:
    """The type of a value behind a chain; of a DequantizeLinear, that of its scale."""
    if value is None:
        return "unknown"
    stored = ir.convenience.get_const_tensor(value)
    if stored is not None:
        return np.dtype(stored.dtype.numpy()).name
    node = value.producer()
    if node is not None and node.op_type == "Cast":
        return np.dtype(ir.DataType(node.attributes.get_int("to")).numpy()).name
    if node is not None and node.op_type in PATH:
        return _declared(node.inputs[1 if node.op_type == "DequantizeLinear" else 0])
    return "unknown" if value.dtype is None else np.dtype(value.dtype.numpy()).name


# *** the rules ***


def _judge(read: _Read) -> Verdict:
    bits = nonzero(read.values)
    zeros = 1 - np.count_nonzero(bits) / max(bits.size, 1)
    rule, detail = _broken_rule(read, bits, zeros)
    return Verdict(
        read.site, read.op, tuple(bits.shape), read.axis, read.dtype, float(zeros),
        is_eligible=rule in ("", "alignment"), is_meant=bool(zeros >= MEANT), rule=rule, detail=detail,
    )  # fmt: skip


def _broken_rule(read: _Read, bits: np.ndarray, zeros: float) -> tuple[str, str]:
    """(rule, what breaks it): ("", "") when a sparse kernel may run; "alignment" when it may, but may not win."""
    K = bits.shape[read.axis]
    if read.op in _NO_KERNEL:
        return "operator", f"TensorRT has no sparse kernel for {read.op}"
    if read.op != "Conv" and bits.ndim > 2:
        return "stack", f"a stack of {bits.shape[0]} matrices; only one matrix can be sparse"
    if K % M:
        return "multiple", f"K is {K}, not a multiple of {M}"
    if zeros < MEANT and read.users:
        return "tied", f"{', '.join(read.users)} reads it too, and it is dense"
    if zeros < MEANT:
        return "dense", f"{zeros:.0%} zeros"
    bad = most(bits, read.axis) > N
    if bad.any():
        return _without_pattern(read, bits, bad)
    if read.dtype not in SPARSE_DTYPES:
        return "dtype", f"{read.dtype}; 2:4 kernels take {', '.join(SPARSE_DTYPES)}"
    return _alignment(read, bits)


def _without_pattern(read: _Read, bits: np.ndarray, bad: np.ndarray) -> tuple[str, str]:
    for other in range(bits.ndim):
        if other != read.axis and bits.shape[other] % M == 0 and not (most(bits, other) > N).any():
            return "axis", f"2:4 holds along axis {other}, but {read.op} contracts axis {read.axis}"
    first = [int(i) for i in np.argwhere(bad)[0]]
    first_of = ", ".join(f"{M * i}:{M * i + M}" if at == read.axis else str(i) for at, i in enumerate(first))
    held = "1 group holds" if bad.sum() == 1 else f"{bad.sum()} groups hold"
    return "group", f"{held} more than {N} non-zeros, of {bad.size} along axis {read.axis}; the first is [{first_of}]"


def _alignment(read: _Read, bits: np.ndarray) -> tuple[str, str]:
    step, K = SPARSE_DTYPES[read.dtype], bits.shape[read.axis]
    outputs = bits.shape[0] if read.op == "Conv" else bits.size // K
    if K % step == 0 and outputs % step == 0:
        return "", ""
    return "alignment", f"K {K} and {outputs} outputs, where multiples of {step} suit the kernels of {read.dtype}"


# *** counting ***


def nonzero(x: np.ndarray) -> np.ndarray:
    """Where x is not exactly zero: -0.0 is zero, 1e-30 is not. Bits are compared, as numpy is slow on half types."""
    if "float" not in x.dtype.name or x.dtype.itemsize not in _UNSIGNED:
        return x != 0
    unsigned = _UNSIGNED[x.dtype.itemsize]
    return (x.view(unsigned) << unsigned(1)) != 0  # the sign falls off the end


def most(bits: np.ndarray, axis: int) -> np.ndarray:
    """Non-zeros in each group of M along an axis: the same shape, that axis M times shorter."""
    shape = (*bits.shape[:axis], bits.shape[axis] // M, M, *bits.shape[axis + 1 :])
    first, *others = np.moveaxis(bits.reshape(shape), axis + 1, 0)
    total = first.astype(np.uint8)
    for one in others:
        total += one
    return total
