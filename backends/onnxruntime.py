"""ONNX Runtime: the only file that imports it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from compressor import onnx_file
from compressor.backends import integers
from compressor.contractions import Contraction, contractions
from compressor.errors import BackendError
from compressor.graph import Feeds, Graph, Run
from compressor.quantization import Kernels
from compressor.source import Probe, Stored


class OnnxRuntime:
    """`--backend onnxruntime` (or `ort`): a folder with `model.onnx` that ONNX Runtime runs on the CPU."""

    name = "onnxruntime"
    quantizes: Mapping[str, Kernels] = {"int8-dynamic": Kernels(), "int4": Kernels()}

    def probe(self) -> Probe:
        try:
            return Probe(True, version("onnxruntime"))
        except PackageNotFoundError:
            return Probe(False, hint="pip install onnxruntime")

    def gain(self, pattern: str) -> str:
        return (
            "ONNX Runtime on CPU has no sparse kernels: zeros make the file compressible, not faster. "
            "For speed here remove channels or quantize; for speed from 2:4 build for TensorRT."
        )

    def dtypes(self) -> Sequence[str]:
        return ("float32", "float16")

    def build(self, graph: Graph, folder: Path) -> None:
        model = onnx_file.to_onnx(graph)
        if graph.grids:
            integers.quantize(model, graph.grids)
        onnx_file.save(model, folder)

    def open(self, folder: Path, threads: int = 0) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        path = folder / onnx_file.MODEL_FILE
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load {path.name}", found=str(error).splitlines()[0]) from error
        inputs = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]

        def run(feeds: Feeds) -> dict[str, torch.Tensor]:
            values = session.run(outputs, {name: np.ascontiguousarray(feeds[name].numpy()) for name in inputs})
            return {name: torch.from_numpy(value) for name, value in zip(outputs, values, strict=True)}

        return run

    def stored(self, folder: Path) -> dict[str, Stored]:
        model = onnx_file.read(folder / onnx_file.MODEL_FILE)
        return {found.site: _as_stored(found) for found in contractions(model)}


def _as_stored(found: Contraction) -> Stored:
    scale = found.scales()
    return Stored(
        torch.from_numpy(found.along_last().copy()),
        f"{found.op} axis {found.axis}",
        found.dtype,
        None if scale is None else torch.from_numpy(scale.copy()),
    )
