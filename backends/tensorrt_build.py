"""How an engine is built, as files: `build.json` before, the engine, its log and its layers after.

model.onnx, model.onnx.data     what is built
build.json                      how; `compress build FOLDER` needs nothing else
run.json                        the same for ONNX Runtime's own TensorRT provider
sparse.engine                   the engine; dense.engine, from the same file, is what it is measured against
sparse.log, sparse.layers.json  what the builder said, and what the engine's inspector lists
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from compressor import onnx_file
from compressor.backends.tensorrt_child import ask
from compressor.backends.tensorrt_log import read_layers, read_log
from compressor.backends.tensorrt_onnx import Profile, layer_name, profiles
from compressor.contractions import contractions
from compressor.engine import Engine, Layer
from compressor.errors import BackendError
from compressor.graph import Feeds, Run
from compressor.progress import Progress
from compressor.shapes import Range

BUILD, RUN = "build.json", "run.json"
SPARSE, DENSE = "sparse", "dense"


@dataclass(frozen=True)
class Spec:
    """What `build.json` holds.

    profiles: least, usual and most shape of each input. workspace: bytes the builder may use, null for all there are.
    level: 0 to 5, how many kernels it tries. flags: more of TensorRT's BuilderFlag by name. timing_cache: whether
    measured kernels are kept for the next build on the same GPU.
    """

    backend: str
    onnx: str = onnx_file.MODEL_FILE
    profiles: tuple[Profile, ...] = ()
    workspace: int | None = None
    level: int = 3
    flags: tuple[str, ...] = ()
    timing_cache: bool = True
    schema: int = 1

    @staticmethod
    def read(folder: Path) -> "Spec":
        """Raises BackendError when the folder has no readable build.json."""
        path = folder / BUILD
        hint = "the folder of an artifact that was exported for tensorrt or tensorrt-rtx"
        try:
            return Spec(**json.loads(path.read_text(encoding="utf-8")))
        except OSError:
            raise BackendError(f"cannot find {path}", hint=hint) from None
        except (ValueError, TypeError) as error:
            raise BackendError(f"cannot read {path}", found=str(error), hint=hint) from None


def write_spec(backend: str, folder: Path, shapes: Mapping[str, Range]) -> None:
    """Write `build.json` and `run.json` for the model in the folder."""
    model = onnx_file.read(folder / onnx_file.MODEL_FILE)
    spec = Spec(backend, profiles=tuple(profiles(model, shapes)))
    _write_json(folder / BUILD, spec.__dict__)
    _write_json(folder / RUN, {"model": spec.onnx, "providers": providers(model, spec)})


def providers(model: ir.Model, spec: Spec) -> list[Any]:
    """The `providers` argument of onnxruntime.InferenceSession that runs the same build inside ONNX Runtime."""
    types = {value.dtype for value in model.graph.initializers.values()}
    options: dict[str, Any] = {
        "trt_sparsity_enable": True,
        "trt_fp16_enable": ir.DataType.FLOAT16 in types,
        "trt_bf16_enable": ir.DataType.BFLOAT16 in types,
        "trt_builder_optimization_level": spec.level,
    }
    for profile in spec.profiles:
        for at, which in enumerate(("min", "opt", "max")):
            shapes = [f"{name}:{'x'.join(map(str, lengths[at]))}" for name, lengths in profile.items()]
            options[f"trt_profile_{which}_shapes"] = ",".join(shapes)
    return [["TensorrtExecutionProvider", options], ["CUDAExecutionProvider", {}], ["CPUExecutionProvider", {}]]


def build_one(folder: Path, package: str, kind: str, needs_device: bool, progress: Progress) -> dict[str, Any]:
    """Build `sparse` or `dense`; the worker's answer. Raises one of the BackendErrors."""
    spec = Spec.read(folder)
    # Each kind has a cache of its own: kernels timed for one must not answer for the other.
    cache = f"{kind}.timing" if spec.timing_cache and package == "tensorrt" else None
    # Bare names, as the log repeats them and belongs to the artifact.
    request = {
        "command": "build", "package": package, "needs_device": needs_device, "sparse": kind == SPARSE, "cache": cache,
        "onnx": spec.onnx, "engine": engine_file(folder, kind).name, "log": f"{kind}.log",
        "layers": f"{kind}.layers.json", "profiles": spec.profiles, "workspace": spec.workspace, "level": spec.level,
        "flags": spec.flags,
    }  # fmt: skip
    return ask(request, progress=progress, folder=folder)


def describe(folder: Path, program: str, answer: dict[str, Any]) -> Engine:
    """The sparse engine, from the builder's answer, its log and the inspector's list."""
    counted = read_log((folder / f"{SPARSE}.log").read_text(encoding="utf-8").splitlines())
    here = not answer["why"]
    return Engine(
        f"{program} {answer['version']}", is_built=True, runs_here=here, seconds=answer["seconds"],
        bytes=answer["bytes"], eligible=counted.eligible, chosen=counted.chosen, layers=_layers(folder) if here else (),
        why="" if here else f"{program} {answer['why']}",
    )  # fmt: skip


def largest_batch(folder: Path) -> int | None:
    """What the profile takes along the first axis, when that is one length for all inputs; else None."""
    lengths = {tuple(shapes[i][0] for i in (0, 2)) for one in Spec.read(folder).profiles for shapes in one.values()}
    return lengths.pop()[1] if len(lengths) == 1 else None


def in_batches(run: Run, most: int | None) -> Run:
    """The run, larger batches cut to what it takes."""
    if most is None:
        return run

    def cut(feeds: Feeds) -> dict[str, torch.Tensor]:
        n = len(next(iter(feeds.values())))
        parts = [run({name: x[at : at + most] for name, x in feeds.items()}) for at in range(0, n, most)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return cut


def engine_file(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.engine"


def _layers(folder: Path) -> tuple[Layer, ...]:
    model = onnx_file.read(folder / onnx_file.MODEL_FILE)
    sites = {layer_name(found.site): found.site for found in contractions(model)}
    return read_layers((folder / f"{SPARSE}.layers.json").read_text(encoding="utf-8"), sites)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
