"""One export: its steps in order, how long each took, and the report that they add up to."""

import dataclasses
import functools
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import machine, python_version
from typing import Any

import torch
from torch import Tensor

from compressor import debugging
from compressor.artifact import folder_size
from compressor.back_off import back_off, check_back_off
from compressor.cache import Cache
from compressor.engine import Engine, EngineBackend
from compressor.errors import BackendError, DataError, RecipeError
from compressor.fingerprint import model_digest, score_key
from compressor.graph import Feeds, Graph, Run
from compressor.onnx_file import MODEL_FILE
from compressor.pipeline import Context, Learner, Observer, Outcome, Softenable, format_pass, run_pipeline
from compressor.progress import Progress
from compressor.proof import finish, proving
from compressor.proof.costs import CostChange, Costs, costs_of
from compressor.proof.exhibits import Exhibits
from compressor.proof.gathering import Gallery
from compressor.proof.latency import Comparison, compare
from compressor.proof.parity import Parity, tolerance
from compressor.proof.report import Promise, Report, Scores, SiteRecord, Sizes, Unquantized, score_drop
from compressor.proof.unquantized import before, beside, in_floats
from compressor.recipe import Recipe
from compressor.rounded import unrounded
from compressor.shapes import Range, choose_shapes, parse_shapes, usual_feeds
from compressor.softening import Softened, soften
from compressor.source import Backend, Evaluation, Score, Source, Training

DENSE_TWIN = ".dense"
SCORES = "scores"
NO_LABELS = "the data has no labels, so nothing was scored"
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")


@dataclass(frozen=True)
class _Proof:
    """What was read from the artifact and measured on it. runs_in: what ran it, "" when nothing here does."""

    sites: tuple[SiteRecord, ...]
    parity: Parity | None
    scores: Scores | None
    promises: tuple[Promise, ...]
    unscored: str
    runs_in: str
    exhibits: Exhibits
    unquantized: Unquantized | None


class Export:
    """A source, a backend and a recipe, about to become an artifact.

    output: what the artifact will be called. kept: a folder for what a run that was killed goes on from.
    cache: where scores of dense models are kept; None to score anew.
    """

    def __init__(
        self,
        source: Source,
        backend: Backend,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        observers: Sequence[Observer],
        kept: Path | None = None,
        cache: Cache | None = None,
    ):
        self.source, self.backend, self.recipe, self.output = source, backend, recipe, output
        self.progress, self.observers, self.kept, self.cache = progress, observers, kept, cache
        self._training = functools.cache(source.training)
        self.seconds: dict[str, float] = {}
        self.calibration = "none was needed"
        self.saved = ""
        self.before = before(recipe)

    def run(self, folder: Path) -> Report:
        """Write the artifact into a folder, and say what was done and measured."""
        # What cannot be done is said before any time is spent: missing data here, sites that refuse in `_capture`.
        evaluation = self._evaluation()
        graph = self._capture()
        shapes = engine_shapes(self.backend, self.source, self.recipe, graph)
        dense_nonzero = _count_nonzero(graph)
        dense_costs, dense_shapes = self._costs(graph), _shapes(graph)
        dense = self._score_dense(evaluation, graph)
        gallery = self._gallery(graph)
        twin = self._build_twin(graph, folder)
        graph, outcomes = self._run_passes(graph, evaluation, dense)
        # Rounding, which runtimes do in their kernels, is operators of its own in the graph: shapes alone count.
        own_costs = dense_costs if _shapes(graph) == dense_shapes else self._costs(graph)
        compressed = self._score("score the compressed model", evaluation, graph.run)
        reference = self._in_dtype(graph)
        engine = self._build(graph, reference, folder, shapes)
        proven = self._prove(graph, reference, outcomes, engine, folder, evaluation, dense, compressed, gallery)
        latency = self._time(graph, reference, folder, twin, engine)
        sizes = Sizes(
            folder_size(twin or folder, f"{MODEL_FILE}*"),
            folder_size(folder, f"{MODEL_FILE}*"),
            sum(x.numel() for x in graph.module.parameters()),
            dense_nonzero,
            _count_nonzero(graph),
        )
        if twin:
            shutil.rmtree(twin)
        costs = tuple(CostChange(name, dense_costs[name], own_costs[name]) for name in dense_costs)
        return self._report(outcomes, proven, engine, latency, sizes, costs)

    # *** steps ***

    def _evaluation(self) -> Evaluation | None:
        evaluation = self.source.evaluation(self.recipe.samples)
        check_back_off(self.recipe)
        if evaluation is None and self.recipe.max_drop is not None:
            raise RecipeError(
                "max_drop needs something to score",
                found="data without labels",
                hint="--data with labels, or no --max-drop",
            )
        if any(one.needs_data for one in self.recipe.passes):
            self.calibration = calibrated_on(self.source, self.recipe)
        check_training(self.recipe, self._training)
        return evaluation

    def _capture(self) -> Graph:
        with self._stage("capture the graph"):
            graph = self.source.lower()
            graph.verify()
        for one in self.recipe.passes:
            one.plan(graph)
        return graph

    def _costs(self, graph: Graph) -> dict[str, Costs]:
        with self._stage("count operations and memory"):
            return costs_of(graph, self.source.workloads())

    def _gallery(self, graph: Graph) -> Gallery:
        with self._stage("show samples to the dense model"):
            return Gallery(self.source, graph.run)

    def _build_twin(self, graph: Graph, folder: Path) -> Path | None:
        """The dense model as the same backend builds it; None when no pass will make a difference."""
        if not self.recipe.passes:
            return None
        twin = folder / DENSE_TWIN
        with self._stage("build the dense twin"):
            twin.mkdir()
            self.backend.build(self._in_dtype(graph), twin)
        return twin

    def _run_passes(
        self, graph: Graph, evaluation: Evaluation | None, score: Score | None
    ) -> tuple[Graph, list[Outcome]]:
        """The graph that the artifact is made of, and what the passes say."""
        is_needed = self.recipe.back_off or any(one.needs_dense for one in self.recipe.passes)
        dense = graph.copy() if is_needed else None
        context = Context(
            calibration=self._calibrate,
            seed=self.recipe.seed,
            progress=self.progress,
            dense=dense,
            training=self._training,
            kept=self.kept,
            kernels=self.backend.quantizes,
            is_logits=getattr(self.source, "is_logits", True),
            latency=None if isinstance(self.backend, EngineBackend) else self._latency,
        )
        with self._stage("run the passes"):
            outcomes = run_pipeline(graph, self.recipe.passes, context, [*self.observers, self.before])
        if self.recipe.back_off and dense and evaluation and score:
            graph, outcomes = self._back_off(graph, dense, outcomes, context, evaluation, score)
        gc.collect()
        return graph, outcomes

    def _latency(self, graph: Graph) -> float:
        """Milliseconds of the first workload, as the backend builds it."""
        name, feeds = next(iter(self.source.workloads().items()))
        with tempfile.TemporaryDirectory() as folder:
            self.backend.build(graph, Path(folder))
            run = self.backend.open(Path(folder), threads=1)
            return compare({"": run}, name, graph.adapt(feeds), seconds=1.0).latency[""].p50

    def _back_off(
        self,
        graph: Graph,
        dense: Graph,
        outcomes: list[Outcome],
        context: Context,
        evaluation: Evaluation,
        score: Score,
    ) -> tuple[Graph, list[Outcome]]:
        allowed = self.recipe.max_drop
        assert allowed is not None, "check_back_off refuses"
        unit = "points" if score.higher_is_better else "%"

        def drop(graph: Graph) -> float:
            return score_drop(score, evaluation.score(graph.run))[0]

        last = self.recipe.passes[-1]
        with self._stage("back off"):
            if self.before.graph and isinstance(last, Softenable):
                first = Softened(graph, outcomes[-1])
                made = soften(first, self.before.graph, last, context, drop, allowed, unit)
                return made.graph, [*outcomes[:-1], made.outcome]
            return graph, back_off(graph, dense, outcomes, context, lambda: drop(graph), allowed, unit)

    def _calibrate(self, n: int) -> Sequence[Feeds]:
        batches = self.source.calibration(n)
        used = sum(len(next(iter(batch.values()))) for batch in batches)
        self.calibration = f"{used} samples from {self.source.calibration_description}"
        return batches

    def _score_dense(self, evaluation: Evaluation | None, graph: Graph) -> Any:
        """Once for each model, data and version, where there is a cache."""
        model = model_digest(self.source, graph) if self.cache and evaluation else None
        key = score_key(model, self.recipe, environment()) if model else ""
        kept = self.cache.get(SCORES, key) if self.cache and key else None
        if kept is not None:
            return Score(**kept | {"per_sample": tuple(kept["per_sample"])})
        score = self._score("score the dense model", evaluation, graph.run)
        if self.cache and key:
            self.cache.put(SCORES, key, dataclasses.asdict(score))
        return score

    def _score(self, stage: str, evaluation: Evaluation | None, run: Run) -> Any:
        if evaluation is None:
            return None
        with self._stage(stage), self.progress.task("scoring", total=None) as step:

            def counted(feeds: Feeds) -> dict[str, Tensor]:
                step()
                return run(feeds)

            return evaluation.score(counted)

    def _in_dtype(self, graph: Graph) -> Graph:
        """The graph itself in float32; else the model captured again in that dtype, from the same weights."""
        if self.recipe.dtype == "float32":
            return graph
        _check_range(graph, self.recipe.dtype)
        made = self.source.lower(self.recipe.dtype)
        graph.repeat_on(made)
        return made

    def _build(self, graph: Graph, reference: Graph, folder: Path, shapes: Mapping[str, Range]) -> Engine | None:
        with self._stage("build the artifact"):
            self.backend.build(reference, folder)
            self.saved = self.source.save(folder, reference) or ""
        return self._engine(graph, reference, folder, shapes)

    def _engine(self, graph: Graph, reference: Graph, folder: Path, shapes: Mapping[str, Range]) -> Engine | None:
        """Write what the build takes, with torch's outputs to compare, and build as much as this machine can."""
        if not isinstance(self.backend, EngineBackend):
            return None
        with self._stage("build the engine"):
            self.backend.prepare(folder, shapes)
            workloads = self._workloads(graph, shapes)
            allowed = tolerance(reference.run, workloads.values(), self.recipe.dtype, _unrounded(reference))
            finish.write_reference(folder, reference.run, workloads, allowed)
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
        return {name: graph.adapt(proving.in_dtype(feeds, self.recipe.dtype)) for name, feeds in found.items()}

    def _prove(
        self,
        graph: Graph,
        reference: Graph,
        outcomes: Sequence[Outcome],
        engine: Engine | None,
        folder: Path,
        evaluation: Evaluation | None,
        dense: Score | None,
        compressed: Score | None,
        gallery: Gallery,
    ) -> _Proof:
        opened = finish.open_artifact(self.backend, folder, engine)
        artifact = proving.adapted(graph, proving.cast(opened.run, self.recipe.dtype)) if opened.run else None
        score = self._score("score the artifact", evaluation, artifact) if artifact else None
        scores = self._scores(evaluation, dense, compressed, score)
        rows = (row for one in outcomes for row in one.rows)
        with self._stage("check the artifact"):
            stored = self.backend.stored(folder)
            sites = proving.site_records(graph, rows, stored)
            parity = self._parity(reference, artifact) if artifact else None
        unquantized = self._beside_unquantized(evaluation, artifact, score) if artifact else None
        with self._stage("show samples to the artifact"):
            timed = self._workloads(graph, {}) if self.recipe.passes and engine is None else {}
            exhibits = gallery.exhibits(artifact, sites, stored, timed)
        promises = proving.promises(sites, scores, parity, self.recipe.allow_partial)
        if isinstance(self.backend, EngineBackend) and engine is not None:
            sites = finish.with_verdicts(sites, self.backend.check(folder / MODEL_FILE), engine)
            promises += finish.engine_promises(sites, engine)
        unscored = "" if scores else _unscored(evaluation, opened)
        return _Proof(sites, parity, scores, promises, unscored, opened.by, exhibits, unquantized)

    def _parity(self, reference: Graph, artifact: Run) -> Parity:
        return proving.prove_parity(self.source, reference.run, artifact, self.recipe.dtype, _unrounded(reference))

    def _beside_unquantized(
        self, evaluation: Evaluation | None, artifact: Run, score: Score | None
    ) -> Unquantized | None:
        if not self._follows_others:
            return None
        assert self.before.graph is not None

        def scored(run: Run) -> Score | None:
            return self._score("score the model before it was quantized", evaluation, run)

        return beside(self.before.graph, artifact, score, scored, self.source.workloads().values())

    @property
    def _follows_others(self) -> bool:
        """Whether quantize comes after other passes."""
        return self.before.graph is not None and len(self.recipe.passes) > 1

    def _scores(
        self, evaluation: Evaluation | None, dense: Score | None, compressed: Score | None, artifact: Score | None
    ) -> Scores | None:
        if evaluation is None or dense is None or compressed is None or artifact is None:
            return None
        drop, stderr = score_drop(dense, artifact)
        return Scores(evaluation.description, dense, compressed, artifact, drop, stderr, self.recipe.max_drop)

    def _time(
        self, graph: Graph, reference: Graph, folder: Path, twin: Path | None, engine: Engine | None
    ) -> tuple[Comparison, ...]:
        with self._stage("time the artifact"):
            if twin is None or (engine and not engine.runs_here):
                return ()
            if engine and isinstance(self.backend, EngineBackend):
                inputs = {name: feeds for name, (feeds, _) in finish.read_reference(folder).items()}
                return finish.time_engines(self.backend, folder, inputs, finish.stand_in(folder, threads=1)[0])
            dense, artifact = self.backend.open(twin, threads=1), self.backend.open(folder, threads=1)
            with self._in_floats(reference) as floats:
                return proving.time_beside_dense(
                    self.source, graph, dense, artifact, self.recipe.dtype, self.progress, floats
                )

    @contextmanager
    def _in_floats(self, graph: Graph) -> Iterator[Run | None]:
        """The artifact without its quantization, open while this lasts; None where that is the dense twin."""
        if not self._follows_others:
            yield None
            return
        with tempfile.TemporaryDirectory() as scratch:
            self.backend.build(in_floats(graph), Path(scratch))
            yield self.backend.open(Path(scratch), threads=1)

    def _report(
        self,
        outcomes: Sequence[Outcome],
        proven: _Proof,
        engine: Engine | None,
        latency: tuple[Comparison, ...],
        sizes: Sizes,
        costs: tuple[CostChange, ...],
    ) -> Report:
        recipe = self.recipe
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
            promises=proven.promises,
            sites=proven.sites,
            scores=proven.scores,
            unscored=proven.unscored,
            parity=proven.parity,
            latency=latency,
            sizes=sizes,
            seconds={name: round(spent, 3) for name, spent in self.seconds.items()},
            environment=environment(),
            engine=engine,
            ran_in=proven.runs_in,
            timed_on=f"{engine.runtime}, GPU" if engine else "1 thread",
            notes=(
                *(note for outcome in outcomes for note in outcome.notes),
                *filter(None, (proving.in_codes(proven.sites, recipe.dtype), self.saved)),
            ),
            costs=costs,
            exhibits=proven.exhibits,
            unquantized=proven.unquantized,
        )

    def _gain(self, outcomes: Sequence[Outcome]) -> str:
        patterns = [row.asked for outcome in outcomes for row in outcome.of("changed") if row.asked]
        return self.backend.gain(patterns[-1]) if patterns else ""

    # *** time ***

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.progress.say(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        debugging.note(debugging.STEPS, f"{name}: {self.seconds[name]:.2f} s")


def calibrated_on(source: Source, recipe: Recipe) -> str:
    """What calibrates. Raises DataError when nothing can, with the flags by which these passes would need nothing."""
    try:
        return source.calibration_description
    except DataError as error:
        without = [getattr(one, "without_data", "") for one in recipe.passes if one.needs_data]
        if not error.hint or not all(without):
            raise
        raise DataError(error.what, error.found, f"{error.hint}, or {' '.join(without)}") from None


def check_training(recipe: Recipe, training: Callable[[int | None], Training]) -> None:
    """Raise DataError when a pass cannot learn from the samples that there are."""
    for one in recipe.passes:
        if isinstance(one, Learner):
            one.check(training(one.training_samples))


def engine_shapes(backend: Backend, source: Source, recipe: Recipe, graph: Graph) -> dict[str, Range]:
    """The lengths that an engine is built for; none where there is no engine. Raises RecipeError."""
    if not isinstance(backend, EngineBackend):
        return {}
    return choose_shapes(graph, source.workloads(), recipe.window, parse_shapes(recipe.shapes))


def _unscored(evaluation: Evaluation | None, opened: finish.Opened) -> str:
    return f"nothing here runs the artifact: {opened.why}" if evaluation else NO_LABELS


def _unrounded(graph: Graph) -> Run | None:
    return unrounded(graph) if graph.points else None


def _shapes(graph: Graph) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in graph.module.named_parameters()}


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
