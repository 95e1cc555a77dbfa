"""The main job: a model and a recipe in, a checked artifact out."""

import dataclasses
from pathlib import Path
from typing import Any

from compressor import debugging
from compressor.artifact import RECIPE, REPORT, check_free, resumable, staged
from compressor.cache import Cache
from compressor.engine import EngineBackend
from compressor.errors import BackendError, RecipeError
from compressor.page import write_page
from compressor.pipeline import dump_graphs, show_changes
from compressor.progress import QUIET, Progress
from compressor.proof.report import Report
from compressor.recipe import AUTO, Recipe
from compressor.registry import load, names
from compressor.run import Export
from compressor.source import Backend, Options, Source


def export(
    model: Any,
    recipe: Recipe | str | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = QUIET,
    dump_graph: str | Path | None = None,
    cache: Cache | None = None,
) -> Report:
    """Compress a model, write the artifact, and prove on it what was done.

    model: a hub id, a local folder, a zoo name, `module:function`; or (module, example inputs), a compressor.Model, or
        any Source. None takes the model that the recipe names.
    recipe: a Recipe, its text (`export | sparsify{pattern=2:4}`), or None for a dense export.
    output: the artifact's folder; by default NAME-BACKEND in the working directory.
    dump_graph: a folder to write the graph to, after each pass.
    cache: where the dense model's score is kept (`compressor.cache.open_cache()`); None to score it anew.
    Returns a Report that is true when every promise is met. Raises a UserError; then nothing was written.
    """
    recipe = resolve(model, recipe)
    output = Path(output) if output else default_output(recipe)
    backend = open_backend(recipe)
    recipe = settle(recipe, backend)
    check_free(output, overwrite)
    source = open_source(model, recipe)
    observers = [dump_graphs(Path(dump_graph))] if dump_graph else []
    observers += [show_changes()] if debugging.level() >= debugging.DIFFS else []
    with resumable(output) as kept, staged(output, overwrite) as folder:
        report = Export(source, backend, recipe, output, progress, observers, kept, cache).run(folder)
        report = dataclasses.replace(report, output=output.name)
        report.write(folder / REPORT)
        write_page(folder)
        (folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
    return report


def resolve(model: Any, recipe: Recipe | str | None) -> Recipe:
    """The recipe, with the model's name in it."""
    recipe = Recipe.parse(recipe) if isinstance(recipe, str) else recipe or Recipe()
    if isinstance(model, str):
        recipe = dataclasses.replace(recipe, model=model)
    if not recipe.model and model is None:
        raise RecipeError("no model was named", hint="compress export tiny-gpt2 --sparsity 2:4")
    return recipe


def default_output(recipe: Recipe) -> Path:
    """`NAME-BACKEND` in the working directory."""
    return Path(f"{short_name(recipe)}-{recipe.backend}")


def short_name(recipe: Recipe) -> str:
    """The model's name without what leads to it: `gpt2` of `org/gpt2`, `make` of `nets.py:make`."""
    stem = recipe.model.rpartition(":")[2] if ":" in recipe.model else recipe.model
    return Path(stem or "model").resolve().name


def open_source(model: Any, recipe: Recipe) -> Source:
    """The first registered source that accepts the model opens it. Raises SourceError."""
    options = Options(recipe.data, recipe.window, recipe.seed, recipe.trust_remote_code)
    named: Any = recipe.model if model is None else model
    if hasattr(type(named), "workloads"):  # a Source already; isinstance would call its properties
        return named
    for kind in names("sources"):
        source = load("sources", kind)
        if source.accepts(named):
            return source.open(named, options)
    raise RecipeError(
        f"a model cannot be a {type(named).__name__}",
        hint="a name, (module, example inputs), or compressor.Model(module, example, ...)",
    )


def open_backend(recipe: Recipe) -> Backend:
    """The backend that the recipe names. Raises BackendError when it cannot work here or has no such dtype."""
    backend: Backend = load("backends", recipe.backend)()
    probe = backend.probe()
    if not probe.available:
        raise BackendError(f"backend {recipe.backend!r} cannot work here", found="not installed", hint=probe.hint)
    if recipe.dtype not in (AUTO, *backend.dtypes()):
        raise BackendError(
            f"backend {recipe.backend!r} does not build {recipe.dtype}",
            found=f"it builds {', '.join(backend.dtypes())}",
        )
    if recipe.shapes and not isinstance(backend, EngineBackend):
        raise RecipeError(f"backend {recipe.backend!r} builds for all shapes", hint="no --shape")
    for kind in (one.kind for one in recipe.passes if one.name == "quantize"):  # type: ignore[attr-defined]
        _check_quantization(backend, kind, recipe)
    return backend


def _check_quantization(backend: Backend, kind: str, recipe: Recipe) -> None:
    """Raise BackendError when the backend has no kernels for this kind, RecipeError when a pass would undo it."""
    if recipe.passes[-1].name != "quantize":
        last = recipe.passes[-1].name
        raise RecipeError(f"{last} after quantize would move weights off their grids", hint=f"{last} first")
    if kind not in backend.quantizes:
        known = ", ".join(backend.quantizes) or "no kind of quantization yet"
        raise BackendError(
            f"backend {recipe.backend!r} has no {kind} kernels", found=f"it has {known}", hint="--backend onnxruntime"
        )
    beside = backend.quantizes[kind].dtypes
    if recipe.dtype not in (AUTO, *beside):
        raise BackendError(
            f"backend {recipe.backend!r} has no kernels that make {recipe.dtype} of {kind} codes",
            found=f"what they make is {' or '.join(beside)}",
            hint="no --dtype",
        )


def settle(recipe: Recipe, backend: Backend) -> Recipe:
    """The recipe with the backend's choice where it leaves one; beside codes, its kernels decide."""
    if recipe.dtype != AUTO:
        return recipe
    kinds = [one.kind for one in recipe.passes if one.name == "quantize"]  # type: ignore[attr-defined]
    choices = backend.quantizes[kinds[-1]].dtypes if kinds else backend.dtypes()
    return dataclasses.replace(recipe, dtype=choices[0])
