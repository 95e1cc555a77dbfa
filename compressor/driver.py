"""The main job: a model and a recipe in, a checked artifact out."""

import dataclasses
import gc
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import machine, python_version
from typing import Any

import torch
from torch import Tensor

from compressor import finish, proof
from compressor.artifact import RECIPE, REPORT, check_free, folder_size, staged
from compressor.engine import Engine, EngineBackend
from compressor.errors import BackendError, RecipeError
from compressor.graph import Feeds, Graph, Run
from compressor.onnx_file import MODEL_FILE
from compressor.pipeline import Context, Observer, Outcome, dump_graphs, format_pass, run_pipeline
from compressor.progress import QUIET, Progress
from compressor.recipe import AUTO, Recipe
from compressor.registry import load, names
from compressor.report import Report, Scores, Sizes, score_drop
from compressor.shapes import Range, choose_shapes, parse_shapes, usual_feeds
from compressor.source import Backend, Evaluation, Options, Source

DENSE_TWIN = ".dense"
NO_LABELS = "the data has no labels, so nothing was scored"
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")


def export(
    model: Any,
    recipe: Recipe | str | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = QUIET,
    dump_graph: str | Path | None = None,
) -> Report:
    """Compress a model, write the artifact, and prove on it what was done.

    model: a hub id, a local folder, a zoo name, `module:function`; or (module, example inputs), a compressor.Model, or
        any Source. None takes the model that the recipe names.
    recipe: a Recipe, its text (`export | sparsify{pattern=2:4}`), or None for a dense export.
    output: the artifact's folder; by default NAME-BACKEND in the working directory.
    dump_graph: a folder to write the graph to, after each pass.
    Returns a Report that is true when every promise is met. Raises a UserError; then nothing was written.
    """
    recipe = resolve(model, recipe)
    output = Path(output) if output else default_output(recipe)
    backend = open_backend(recipe)
    recipe = settle(recipe, backend)
    check_free(output, overwrite)
    source = open_source(model, recipe)
    observers = [dump_graphs(Path(dump_graph))] if dump_graph else []
    with staged(output, overwrite) as folder:
        report = dataclasses.replace(
            _Run(source, backend, recipe, output, progress, observers).compile(folder), output=output.name
        )
        report.write(folder / REPORT)
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
    stem = recipe.model.rpartition(":")[2] if ":" in recipe.model else recipe.model
    return Path(f"{Path(stem or 'model').resolve().name}-{recipe.backend}")


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
    return backend


def settle(recipe: Recipe, backend: Backend) -> Recipe:
    """The recipe with the backend's choice where it leaves one."""
    return dataclasses.replace(recipe, dtype=backend.dtypes()[0]) if recipe.dtype == AUTO else recipe


class _Run:
    """One export: its parts in order, and how long each took."""

    def __init__(
        self,
        source: Source,
        backend: Backend,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        observers: Sequence[Observer],
    ):
        self.source, self.backend, self.recipe, self.output = source, backend, recipe, output
        self.progress, self.observers = progress, observers
        self.seconds: dict[str, float] = {}
        self.calibration = "none was needed"

    def compile(self, folder: Path) -> Report:
        recipe, twin = self.recipe, folder / DENSE_TWIN
        # What cannot be done is said before any time is spent: missing data here, sites that refuse below.
        evaluation = self._evaluation()
        if any(one.needs_data for one in recipe.passes):
            self.calibration = self.source.calibration_description
        with self._stage("capture the graph"):
            graph = self.source.lower()
            graph.verify()
        shapes = self._shapes(graph)
        for one in recipe.passes:
            one.plan(graph)
        dense_nonzero = _count_nonzero(graph)
        dense_score = self._score("score the dense model", evaluation, graph.run)
        if recipe.passes:
            with self._stage("build the dense twin"):
                twin.mkdir()
                self.backend.build(self._in_dtype(graph), twin)
        outcomes = self._run_passes(graph)
        compressed_score = self._score("score the compressed model", evaluation, graph.run)
        reference = self._in_dtype(graph)
        with self._stage("build the artifact"):
            self.backend.build(reference, folder)
            self.source.save(folder, reference)
        engine = self._engine(graph, reference, folder, shapes)
        opened = finish.open_artifact(self.backend, folder, engine)
        artifact = proof.cast(opened.run, recipe.dtype) if opened.run else None
        artifact_score = self._score("score the artifact", evaluation, artifact) if artifact else None
        with self._stage("check the artifact"):
            sites = proof.site_records(
                graph, (row for one in outcomes for row in one.rows), self.backend.stored(folder)
            )
            parity = proof.prove_parity(self.source, reference.run, artifact, recipe.dtype) if artifact else None
        scores = self._scores(evaluation, dense_score, compressed_score, artifact_score)
        promises = proof.promises(sites, scores, parity, recipe.allow_partial)
        if isinstance(self.backend, EngineBackend) and engine is not None:
            sites = finish.with_verdicts(sites, self.backend.check(folder / MODEL_FILE), engine)
            promises += finish.engine_promises(sites, engine)
        with self._stage("time the artifact"):
            latency = self._latency(folder, twin, engine) if recipe.passes else ()
        sizes = Sizes(
            folder_size(twin if recipe.passes else folder, f"{MODEL_FILE}*"),
            folder_size(folder, f"{MODEL_FILE}*"),
            sum(x.numel() for x in graph.module.parameters()),
            dense_nonzero,
            _count_nonzero(graph),
        )
        shutil.rmtree(twin, ignore_errors=True)
        return Report(
            model=recipe.model or self.source.name,
            task=self.source.task,
            origin=self.source.origin,
            recipe=str(recipe),
            pipeline=" | ".join(map(format_pass, recipe.passes)),
            backend=f"{recipe.backend} {self.backend.probe().version}".strip(),
            dtype=recipe.dtype,
            gain=self._gain(outcomes),
            calibration=self.calibration,
            promises=promises,
            sites=sites,
            scores=scores,
            unscored="" if scores else _unscored(evaluation, opened),
            parity=parity,
            latency=latency,
            sizes=sizes,
            seconds={name: round(spent, 3) for name, spent in self.seconds.items()},
            environment=environment(),
            engine=engine,
            ran_in=opened.by,
            timed_on=f"{engine.runtime}, GPU" if engine else "1 thread",
        )

    # *** parts ***

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress.say(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def _run_passes(self, graph: Graph) -> list[Outcome]:
        context = Context(self._calibrate, self.recipe.seed, self.progress)
        with self._stage("run the passes"):
            outcomes = run_pipeline(graph, self.recipe.passes, context, self.observers)
        gc.collect()
        return outcomes

    def _calibrate(self, n: int) -> Sequence[Feeds]:
        batches = self.source.calibration(n)
        used = sum(len(next(iter(batch.values()))) for batch in batches)
        self.calibration = f"{used} samples from {self.source.calibration_description}"
        return batches

    def _evaluation(self) -> Evaluation | None:
        evaluation = self.source.evaluation(self.recipe.samples)
        if evaluation is None and self.recipe.max_drop is not None:
            raise RecipeError(
                "max_drop needs something to score",
                found="data without labels",
                hint="--data with labels, or no --max-drop",
            )
        return evaluation

    def _score(self, stage: str, evaluation: Evaluation | None, run: Run) -> Any:
        if evaluation is None:
            return None
        with self._stage(stage), self.progress.task("scoring", total=None) as step:

            def counted(feeds: Feeds) -> dict[str, Tensor]:
                step()
                return run(feeds)

            return evaluation.score(counted)

    def _scores(self, evaluation: Evaluation | None, dense: Any, compressed: Any, artifact: Any) -> Scores | None:
        if evaluation is None or artifact is None:
            return None
        drop, stderr = score_drop(dense, artifact)
        return Scores(evaluation.description, dense, compressed, artifact, drop, stderr, self.recipe.max_drop)

    def _in_dtype(self, graph: Graph) -> Graph:
        """The graph itself in float32; else the model captured again in that dtype, from the same weights."""
        if self.recipe.dtype == "float32":
            return graph
        _check_range(graph, self.recipe.dtype)
        return self.source.lower(self.recipe.dtype)

    def _shapes(self, graph: Graph) -> dict[str, Range]:
        """What an engine is built for; none where there is no engine."""
        if not isinstance(self.backend, EngineBackend):
            return {}
        return choose_shapes(graph, self.source.workloads(), self.recipe.window, parse_shapes(self.recipe.shapes))

    def _engine(self, graph: Graph, reference: Graph, folder: Path, shapes: Mapping[str, Range]) -> Engine | None:
        """Write what the build takes, with torch's outputs to compare, and build as much as this machine can."""
        if not isinstance(self.backend, EngineBackend):
            return None
        with self._stage("build the engine"):
            self.backend.prepare(folder, shapes)
            finish.write_reference(folder, reference.run, self._workloads(graph, shapes))
            try:
                engine = self.backend.build_engine(folder, self.progress)
            except BackendError as error:  # no reason to lose the file
                return Engine(self.backend.name, why=" ".join(str(error).split()))
        return engine if engine.runs_here else dataclasses.replace(engine, command=f"compress build {self.output}")

    def _workloads(self, graph: Graph, shapes: Mapping[str, Range]) -> dict[str, Feeds]:
        """What is timed, in the dtype of the artifact; for engines also at their usual shapes, if these differ."""
        found = dict(self.source.workloads())
        first = next(iter(found.values()))
        usual = usual_feeds(graph, first, shapes) if shapes else first
        if any(usual[name].shape != x.shape for name, x in first.items()):
            found["usual shapes"] = usual
        return {name: proof.in_dtype(feeds, self.recipe.dtype) for name, feeds in found.items()}

    def _latency(self, folder: Path, twin: Path, engine: Engine | None) -> Any:
        if not isinstance(self.backend, EngineBackend) or engine is None:
            dense, artifact = self.backend.open(twin, threads=1), self.backend.open(folder, threads=1)
            return proof.time_beside_dense(self.source, dense, artifact, self.recipe.dtype, self.progress)
        if not engine.runs_here:
            return ()
        inputs = {name: feeds for name, (feeds, _) in finish.read_reference(folder).items()}
        return finish.time_engines(self.backend, folder, inputs, finish.stand_in(folder, threads=1)[0])

    def _gain(self, outcomes: Sequence[Outcome]) -> str:
        patterns = [row.asked for outcome in outcomes for row in outcome.of("changed") if row.asked]
        return self.backend.gain(patterns[-1]) if patterns else ""


def _unscored(evaluation: Evaluation | None, opened: finish.Opened) -> str:
    return f"nothing here runs the artifact: {opened.why}" if evaluation else NO_LABELS


def _count_nonzero(graph: Graph) -> int:
    return sum(int(x.count_nonzero()) for x in graph.module.parameters())


def _check_range(graph: Graph, dtype: str) -> None:
    """Raise BackendError when a weight overflows in the dtype."""
    largest = torch.finfo(getattr(torch, dtype)).max
    for name, weight in graph.module.named_parameters():
        if weight.numel() and weight.detach().abs().max() > largest:
            raise BackendError(
                f"{name} does not fit in {dtype}", found=f"a weight beyond {largest:g}", hint="--dtype float32"
            )


def environment() -> dict[str, str]:
    """Versions of what took part, and the kind of processor."""
    found = {"compressor": _version("compressor"), "python": python_version(), "machine": machine()}
    return found | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
