"""TensorRT and TensorRT for RTX: a folder with the ONNX file that they read, and the engine they make of it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from compressor import onnx_file
from compressor.backends import eligibility, embeddings, qdq, tensorrt_build, tensorrt_onnx
from compressor.backends.tensorrt_build import DENSE, SPARSE, engine_file
from compressor.backends.tensorrt_child import Child, ask
from compressor.contractions import Contraction, contractions
from compressor.engine import Engine, Verdict
from compressor.errors import BackendError, NoDeviceError, NotInstalledError
from compressor.graph import Feeds, Graph, Run
from compressor.progress import QUIET, Progress
from compressor.quantization import Kernels
from compressor.shapes import Range
from compressor.source import Probe, Stored


class TensorRT:
    """`--backend tensorrt`: an engine for this machine's GPU; without one, all that a GPU host needs to build it."""

    name = "tensorrt"
    quantizes: Mapping[str, Kernels] = {"int8": Kernels(largest=127, is_symmetric=True, dtypes=("float16", "float32"))}
    package = "tensorrt"
    program = "TensorRT"
    needs_device = True
    kernels = "which TensorRT chooses, layer by layer, where they are faster than dense"

    def probe(self) -> Probe:
        """Always available: the file is made without TensorRT; the hint says what the engine needs."""
        try:
            return Probe(True, version(self.package))
        except PackageNotFoundError:
            return Probe(True, hint=f"the engine needs pip install 'compressor[{self.name}]'")

    def gain(self, pattern: str) -> str:
        if pattern != "2:4":
            return (
                f"{self.program} has sparse kernels for 2:4 alone: {pattern} makes the file compressible, not faster."
            )
        return (
            f"2:4 fits sparse tensor cores, {self.kernels}: large layers and thousands of rows gain, "
            "single tokens do not. Published gains of whole models are 1.0 to 1.3 times."
        )

    def dtypes(self) -> Sequence[str]:
        return ("float16", "bfloat16", "float32")

    # *** the file ***

    def build(self, graph: Graph, folder: Path) -> None:
        model = onnx_file.to_onnx(graph)
        if graph.grids:
            qdq.quantize(model, graph, signed=True)
        tensorrt_onnx.prepare(model)
        onnx_file.save(model, folder)

    def stored(self, folder: Path) -> dict[str, Stored]:
        model = onnx_file.read(folder / onnx_file.MODEL_FILE)
        return embeddings.stored(model) | {
            found.site: Stored(
                _as_torch(found.along_last()), f"{found.op} axis {found.axis}", found.dtype, _scales(found)
            )
            for found in contractions(model)
        }

    def check(self, path: Path) -> tuple[Verdict, ...]:
        return eligibility.check(onnx_file.read(path))

    def prepare(self, folder: Path, shapes: Mapping[str, Range]) -> None:
        tensorrt_build.write_spec(self.name, folder, shapes)

    # *** the engine ***

    def build_engine(self, folder: Path, progress: Progress = QUIET) -> Engine:
        """The sparse engine, and where it can run a dense one to measure it against."""
        try:
            answer = tensorrt_build.build_one(folder, self.package, SPARSE, self.needs_device, progress)
        except (NotInstalledError, NoDeviceError) as error:
            return Engine(self.program, why=f"{error.what} ({error.found})")
        engine = tensorrt_build.describe(folder, self.program, answer)
        if not engine.runs_here:
            return engine
        tensorrt_build.build_one(folder, self.package, DENSE, self.needs_device, progress)
        return engine

    def open(self, folder: Path, threads: int = 0) -> Run:
        """Load the sparse engine into a process of its own. Raises one of the BackendErrors."""
        path = _built(folder, SPARSE)
        child = Child({"command": "serve", "package": self.package, "engine": str(path.resolve())})
        inputs = child.answer()["inputs"]

        def run(feeds: Feeds) -> dict[str, torch.Tensor]:
            child.send({name: feeds[name] for name in inputs})
            return child.tensors()

        return tensorrt_build.in_batches(run, tensorrt_build.largest_batch(folder))

    def time_engines(self, folder: Path, feeds: Feeds) -> dict[str, list[float]]:
        paths = [str(_built(folder, kind).resolve()) for kind in (DENSE, SPARSE)]
        answer = ask({"command": "time", "package": self.package, "engines": paths}, feeds)
        return dict(zip((DENSE, SPARSE), answer["milliseconds"], strict=True))


class TensorRTRTX(TensorRT):
    """`--backend tensorrt-rtx`: an engine that any machine can build, and that a GPU turns into kernels as it runs."""

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"
    program = "TensorRT for RTX"
    needs_device = False
    kernels = "which TensorRT for RTX may choose on the GPU when it runs; it does not say where"


def _built(folder: Path, kind: str) -> Path:
    path = engine_file(folder, kind)
    if not path.exists():
        raise BackendError(f"{folder} holds no {path.name}", hint=f"compress build {folder}, on a host with a GPU")
    return path


def _scales(found: Contraction) -> torch.Tensor | None:
    scale = found.scales()
    return None if scale is None else _as_torch(scale)


def _as_torch(values: np.ndarray) -> torch.Tensor:
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.copy().view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values.copy())
