"""`compress build` and `compress bench`: finish an artifact's engine on the host that has the device, and time it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compressor.artifact import ENGINE, RECIPE
from compressor.driver import open_source
from compressor.engine import Engine, EngineBackend
from compressor.errors import BackendError, NoDeviceError, RecipeError
from compressor.graph import Feeds, Run
from compressor.page import write_page
from compressor.progress import QUIET, Progress
from compressor.proof import finish, parity, proving
from compressor.proof.latency import Comparison, compare
from compressor.proof.report import Promise, as_json
from compressor.recipe import Recipe
from compressor.registry import load
from compressor.run import environment


@dataclass(frozen=True)
class Built:
    """An engine that was finished on this machine. True when it ran here and computes what torch computed."""

    name: str
    engine: Engine
    promises: tuple[Promise, ...]
    latency: tuple[Comparison, ...] = ()

    def __bool__(self) -> bool:
        return all(promise.met for promise in self.promises)

    def to_json(self) -> str:
        return as_json(self, passed=bool(self))


@dataclass(frozen=True)
class Bench:
    """Times of what runs here. missing: what does not, and why."""

    name: str
    runtime: str
    latency: tuple[Comparison, ...]
    missing: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return as_json(self)


def build(folder: str | Path, *, progress: Progress = QUIET) -> Built:
    """Build the engine of an artifact, run it beside torch's outputs, time it, and write `engine.json` and the page.

    Raises BackendError when the folder has no engine to build, or when this machine cannot build it.
    """
    folder = Path(folder)
    recipe = Recipe.read(folder)
    backend = _engine_backend(recipe)
    engine = backend.build_engine(folder, progress)
    if not engine.is_built:
        hint = f"pip install 'compressor[{recipe.backend}]' and compress build {folder}, on a host with an NVIDIA GPU"
        raise NoDeviceError(f"cannot build the engine of {folder} here", found=engine.why, hint=hint)
    if not engine.runs_here:
        engine = dataclasses.replace(engine, command=f"compress build {folder}")
    promises = [*finish.engine_promises((), engine)]
    latency: tuple[Comparison, ...] = ()
    if engine.runs_here:
        progress.say("compare with torch's outputs")
        reference = finish.read_reference(folder)
        promises.append(_parity(reference, backend.open(folder), recipe.dtype, finish.allowed(folder, recipe.dtype)))
        progress.say("time dense and sparse engines in turn")
        latency = finish.time_engines(backend, folder, _inputs(reference), None)
    built = Built(folder.name, engine, tuple(promises), latency)
    (folder / ENGINE).write_text(built.to_json(), encoding="utf-8")
    write_page(folder)
    return built


def has_engine(name: str) -> bool:
    """Whether that is the folder of an artifact for a runtime that compiles engines."""
    folder = Path(name)
    if not (folder / RECIPE).is_file():
        return False
    return isinstance(load("backends", Recipe.read(folder).backend)(), EngineBackend)


def bench(folder: str | Path, *, progress: Progress = QUIET) -> Bench:
    """Time the workloads of an artifact that has engines: these where they run, and ONNX Runtime on the same file."""
    folder = Path(folder)
    recipe = Recipe.read(folder)
    backend = _engine_backend(recipe)
    workloads = _inputs(finish.read_reference(folder)) or _workloads(recipe)
    progress.say(f"open {folder} in ONNX Runtime")
    other, missing = finish.stand_in(folder, threads=1)
    progress.say(f"time {len(workloads)} workloads")
    try:
        rows = finish.time_engines(backend, folder, workloads, other)
    except BackendError as error:
        missing = "; ".join(filter(None, (f"{error.what} ({error.found or error.hint})", missing)))
        rows = _alone(finish.STAND_IN, other, workloads) if other else ()
    return Bench(folder.name, backend.name, rows, missing, environment())


def _engine_backend(recipe: Recipe) -> EngineBackend:
    backend = load("backends", recipe.backend)()
    if not isinstance(backend, EngineBackend):
        raise RecipeError(
            f"there is no engine to build: the artifact is for {recipe.backend}",
            hint="compress export --backend tensorrt",
        )
    return backend


def _parity(reference: Mapping[str, tuple[Feeds, Feeds]], run: Run, dtype: str, allowed: float) -> Promise:
    found = finish.gap(reference, proving.cast(run, dtype))
    holds = bool(reference) and found <= allowed
    return Promise("the engine computes what torch computes", holds, parity.in_words(found, allowed))


def _inputs(reference: Mapping[str, tuple[Feeds, Feeds]]) -> dict[str, Feeds]:
    return {name: feeds for name, (feeds, _) in reference.items()}


def _workloads(recipe: Recipe) -> Mapping[str, Feeds]:
    workloads = open_source(None, recipe).workloads()
    return {name: proving.in_dtype(feeds, recipe.dtype) for name, feeds in workloads.items()}


def _alone(name: str, run: Run, workloads: Mapping[str, Feeds]) -> tuple[Comparison, ...]:
    return tuple(compare({name: run}, workload, feeds) for workload, feeds in workloads.items())
