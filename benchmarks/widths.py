"""ResNet-56 with fewer blocks or channels, random weights, in ONNX Runtime: milliseconds beside operations.

    python -m benchmarks.widths

One picture of 32 x 32 on one thread, all models in turn; processor time, which other work on the machine leaves alone.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

CLASSES, OPSET = 10, 18


@dataclass(frozen=True)
class Shape:
    """Of each stage: its blocks, the channels within each of them, and those that the blocks add to."""

    blocks: Sequence[int] = (9, 9, 9)
    inner: Sequence[int] = (16, 32, 64)
    stream: Sequence[int] = (16, 32, 64)


SHAPES = {
    "dense": Shape(),
    "half of the inner channels": Shape(inner=(8, 16, 32)),
    "all channels times 0.7": Shape(inner=(11, 23, 45), stream=(11, 23, 45)),
    "all channels, in multiples of 8": Shape(inner=(8, 24, 40), stream=(16, 24, 48)),
    "3 blocks less, inner channels by 0.56": Shape((8, 8, 8), inner=(9, 18, 36)),
    "3 blocks less, in multiples of 8": Shape((8, 8, 8), inner=(8, 16, 40)),
    "5 blocks less, in multiples of 8": Shape((6, 8, 8), inner=(8, 24, 32)),
    "6 blocks less, inner channels by 0.66": Shape((7, 7, 7), inner=(10, 21, 42)),
    "6 blocks less, in multiples of 8": Shape((7, 7, 7), inner=(8, 24, 40)),
    "9 blocks less, in multiples of 8": Shape((6, 6, 6), inner=(12, 24, 48)),
    "13 blocks less": Shape((5, 5, 4)),
}


class Net:
    """A model as ONNX Runtime gets it: normalizations folded, shortcuts of option A. flops: of one picture."""

    def __init__(self, shape: Shape):
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.flops, self._random = 0, np.random.default_rng(0)
        for name, values in {"begin": [0, 0], "end": [9999, 9999], "axes": [2, 3], "steps": [2, 2]}.items():
            self._store(name, np.array(values, np.int64))
        x = self._relu(self._conv("x", 3, shape.stream[0], 32, 1))
        channels = shape.stream[0]
        for stage, (blocks, inner, stream) in enumerate(zip(shape.blocks, shape.inner, shape.stream, strict=True)):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                x = self._block(x, (channels, inner, stream), 32 >> stage, stride)
                channels = stream
        self._store("classes", self._random.standard_normal((CLASSES, channels)).astype(np.float32))
        pooled = self._add("Flatten", [self._add("GlobalAveragePool", [x])])
        self._add("Gemm", [pooled, "classes"], "y", transB=1)

    def _block(self, x: str, channels: tuple[int, int, int], side: int, stride: int) -> str:
        before, inner, stream = channels
        y = self._conv(self._relu(self._conv(x, before, inner, side, stride)), inner, stream, side, 1)
        if stride > 1:
            low = (stream - before) // 2
            pads = self._store(f"pads{len(self.nodes)}", np.array([0, low, 0, 0, 0, stream - before - low, 0, 0]))
            x = self._add("Pad", [self._add("Slice", [x, "begin", "end", "axes", "steps"]), pads])
        return self._relu(self._add("Add", [y, x]))

    def _conv(self, x: str, c_in: int, c_out: int, side: int, stride: int) -> str:
        W = self._random.standard_normal((c_out, c_in, 3, 3)) / np.sqrt(9 * c_in)
        name = self._store(f"w{len(self.nodes)}", W.astype(np.float32))
        bias = self._store(f"b{len(self.nodes)}", np.zeros(c_out, np.float32))
        self.flops += 2 * W.size * side * side
        return self._add("Conv", [x, name, bias], kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)

    def _relu(self, x: str) -> str:
        return self._add("Relu", [x])

    def _store(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def _add(self, op: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def session(self) -> onnxruntime.InferenceSession:
        kind = onnx.TensorProto.FLOAT
        x = helper.make_tensor_value_info("x", kind, ["batch", 3, 32, 32])
        y = helper.make_tensor_value_info("y", kind, ["batch", CLASSES])
        graph = helper.make_graph(self.nodes, "resnet", [x], [y], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500)
    rounds = parser.parse_args().rounds
    nets = {name: Net(shape) for name, shape in SHAPES.items()}
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    sessions = {name: net.session() for name, net in nets.items()}
    times = timed({name: partial(one.run, None, {"x": x}) for name, one in sessions.items()}, rounds)
    print(f"onnxruntime {onnxruntime.__version__}, n = {rounds} rounds\n")
    print("| model | FLOPs | ms p50, of the processor | times faster (quartiles) |\n| --- | --- | --- | --- |")
    for name, net in nets.items():
        low, middle, high = np.percentile(times["dense"] / times[name], [25, 50, 75])
        share, ms = net.flops / nets["dense"].flops, 1000 * np.median(times[name])
        print(f"| {name} | {share:.0%} | {ms:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


def timed(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of this thread, which computes alone, all in turn: (rounds,) each."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for at in range(-3, rounds):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if at >= 0:
                found[name].append(time.thread_time() - start)
    return {name: np.array(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
