"""ONNX Runtime: the only file that imports it."""

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from compressor import onnx_file
from compressor.backends import embeddings, integers
from compressor.contractions import FLOAT_OPERATORS, Contraction, contractions
from compressor.errors import BackendError
from compressor.graph import Feeds, Graph, Run
from compressor.quantization import Kernels
from compressor.source import Probe, Stored

ON_CODES = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
"""What ONNX Runtime fuses a product between DequantizeLinear into; it keeps the product's name."""


class OnnxRuntime:
    """`--backend onnxruntime` (or `ort`): a folder with `model.onnx` that ONNX Runtime runs on the CPU.

    exact: whether codes are multiplied as the floats that they stand for, for files that were made for another runtime:
        on a processor without VNNI, kernels for codes cut codes of +-127 off.
    """

    name = "onnxruntime"
    quantizes: Mapping[str, Kernels] = {
        "int8": Kernels(rounds_outputs=True),
        "int8-dynamic": Kernels(),
        "int4": Kernels(dtypes=("float32", "float16")),
    }

    def __init__(self, *, exact: bool = False):
        self.exact = exact

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
            integers.quantize(model, graph)
        onnx_file.save(model, folder)

    def open(self, folder: Path, threads: int = 0) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if self.exact:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        path = folder if folder.suffix == ".onnx" else folder / onnx_file.MODEL_FILE
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
        found = list(contractions(model))
        fused = _fused(folder) if any(_needs_fusion(one) for one in found) else set()
        products = {one.site: _as_stored(one, _needs_fusion(one) and one.node.name not in fused) for one in found}
        return embeddings.stored(model) | products


def _needs_fusion(one: Contraction) -> bool:
    """Whether it contracts codes between DequantizeLinear, which a runtime may or may not fuse."""
    return one.scale is not None and one.op in FLOAT_OPERATORS


def _fused(folder: Path) -> set[str]:
    """The names of the products that ONNX Runtime runs on codes, having fused what it can."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = f"{scratch}/{onnx_file.MODEL_FILE}"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", onnx_file.DATA_FILE)
        onnxruntime.InferenceSession(str(folder / onnx_file.MODEL_FILE), options, providers=["CPUExecutionProvider"])
        fused = onnx_file.read(Path(scratch) / onnx_file.MODEL_FILE)
        return {node.name or "" for node in fused.graph.all_nodes() if node.op_type in ON_CODES}


def _as_stored(found: Contraction, floats: bool) -> Stored:
    scale = found.scales()
    return Stored(
        torch.from_numpy(found.along_last().copy()),
        f"{found.op} axis {found.axis}",
        found.dtype,
        None if scale is None else torch.from_numpy(scale.copy()),
        floats,
    )
