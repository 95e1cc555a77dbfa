"""Each convolution of ResNet-18 alone in ONNX Runtime, of floats and of codes: what its kernels give at best.

A file holds one operator, whose codes come in as codes and go out as codes. Both kinds turn the layout of their input
and their output on the way, as they do at the ends of a network.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from benchmarks.clocks import clocked, faster

OPSET = 17


@dataclass(frozen=True)
class Shape:
    """A square convolution on pictures of size x size, and how many of them the network has."""

    channels: int
    outputs: int
    kernel: int
    stride: int
    size: int
    count: int

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.kernel}x{self.kernel}, {self.channels} to {self.outputs} at {self.size}{stride}"

    @property
    def halved(self) -> "Shape":
        """With half the channels; a picture keeps its three."""
        channels = self.channels if self.channels == 3 else self.channels // 2
        return dataclasses.replace(self, channels=channels, outputs=self.outputs // 2)


RESNET18 = (
    Shape(3, 64, 7, 2, 224, 1),
    Shape(64, 64, 3, 1, 56, 4),
    *(
        shape
        for width, size in ((64, 56), (128, 28), (256, 14))
        for shape in (
            Shape(width, 2 * width, 3, 2, size, 1),
            Shape(width, 2 * width, 1, 2, size, 1),
            Shape(2 * width, 2 * width, 3, 1, size // 2, 3),
        )
    ),
)


def convolutions() -> None:
    """Each shape of ResNet-18 at 224, whole and with half the channels; then all, as often as the network has them."""
    print("\nOne convolution alone, of a picture at 224; ms p50 of the thread\n")
    print("| | times | float32 ms | share | int8 | faster (quartiles) | half, int8 | faster (quartiles) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    measured = {shape: _measured(shape) for shape in RESNET18}
    totals = {
        name: sum(shape.count * np.median(one[name]) for shape, one in measured.items())
        for name in ("float32", "int8", "half")
    }
    for shape, one in measured.items():
        ms = {name: f"{np.median(times):.2f}" for name, times in one.items()}
        share = shape.count * np.median(one["float32"]) / totals["float32"]
        print(
            f"| {shape} | {shape.count} | {ms['float32']} (n = {len(one['int8'])}) | {share:.0%} | {ms['int8']} "
            f"| {faster(one['float32'], one['int8'])} | {ms['half']} | {faster(one['float32'], one['half'])} |"
        )
    times_faster = {name: f"{totals['float32'] / total:.2f}x" for name, total in totals.items()}
    print(
        f"| all of the network's | {sum(shape.count for shape in RESNET18)} | {totals['float32']:.2f} | 100% "
        f"| {totals['int8']:.2f} | {times_faster['int8']} | {totals['half']:.2f} | {times_faster['half']} |",
        flush=True,
    )


def _measured(shape: Shape) -> dict[str, np.ndarray]:
    """Milliseconds of the thread: (rounds,) each."""
    floats, codes, half = _floats(shape), _codes(shape), _codes(shape.halved)
    runs = {"float32": partial(floats.run, None, _input(shape, np.float32))}
    runs["int8"] = partial(codes.run, None, _input(shape, np.uint8))
    runs["half"] = partial(half.run, None, _input(shape.halved, np.uint8))
    return {name: thread for name, (_, thread) in clocked(runs, seconds=10.0).items()}


def _input(shape: Shape, dtype: type) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).integers(0, 255, (1, shape.channels, shape.size, shape.size))
    return {"x": (x if dtype is np.uint8 else x / 255).astype(dtype)}


def _floats(shape: Shape) -> Any:
    W, bias = _weights(shape)
    return _session(
        shape, "Conv", ["x", "W", "b"], np.float32, {"W": W.astype(np.float32) / 64, "b": bias.astype(np.float32)}
    )


def _codes(shape: Shape) -> Any:
    W, bias = _weights(shape)
    weights = {
        "W": W, "W scale": np.full(shape.outputs, 1e-2, np.float32), "W zero": np.zeros(shape.outputs, np.int8),
        "b": bias, "scale": np.array(1e-2, np.float32), "zero": np.array(0, np.uint8),
    }  # fmt: skip
    return _session(
        shape, "QLinearConv", ["x", "scale", "zero", "W", "W scale", "W zero", "scale", "zero", "b"], np.uint8, weights
    )


def _weights(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    W = rng.integers(-64, 65, (shape.outputs, shape.channels, shape.kernel, shape.kernel)).astype(np.int8)
    return W, rng.integers(-9, 10, shape.outputs).astype(np.int32)


def _session(shape: Shape, op: str, inputs: list[str], dtype: type, weights: dict[str, np.ndarray]) -> Any:
    import onnxruntime

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    pads = [shape.kernel // 2] * 4
    node = helper.make_node(op, inputs, ["y"], kernel_shape=[shape.kernel] * 2, strides=[shape.stride] * 2, pads=pads)
    x = helper.make_tensor_value_info("x", kind, [1, shape.channels, shape.size, shape.size])
    y = helper.make_tensor_value_info("y", kind, [1, shape.outputs, None, None])
    stored = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    model = helper.make_model(
        helper.make_graph([node], "one", [x], [y], stored), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
