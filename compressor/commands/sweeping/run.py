"""A sweep: every recipe of a grid made, checked and timed once, and never again while nothing has changed."""

import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor import driver
from compressor.artifact import check_free, staged
from compressor.cache import Cache
from compressor.commands.sweeping.page import page
from compressor.commands.sweeping.point import Point, point_of, read_point, timed_beside
from compressor.errors import UserError
from compressor.fingerprint import model_digest, point_key
from compressor.flags import Candidate, grid
from compressor.progress import QUIET, Progress
from compressor.proof.report import as_json
from compressor.recipe import Recipe
from compressor.run import environment

POINTS = "points"
RESULT, PAGE, RECIPES = "sweep.json", "sweep.html", "recipes"


@dataclass(frozen=True)
class Sweep:
    """Every point of a grid. True when each one was made, and met every promise.

    dense: the model as it came, built and scored in the same way. cached: how many points had been made before.
    """

    model: str
    dense: Point
    points: tuple[Point, ...]
    environment: dict[str, str]
    output: str
    cached: int
    seconds: float

    def __bool__(self) -> bool:
        return not any(point.failed or point.unmet for point in (self.dense, *self.points))

    def to_json(self) -> str:
        return as_json(self, passed=bool(self))


def sweep(
    model: str,
    *,
    output: str | Path | None = None,
    progress: Progress = QUIET,
    cache: Cache | None = None,
    **flags: Any,
) -> Sweep:
    """Compress a model by every combination of options, as `compress sweep` does, and write a table and a page.

    flags: the flags of `compress export` by name, one value or a list: `sparsity=["2:4", 0.5], method=["wanda"]`.
    output: the sweep's folder, NAME-sweep by default; a sweep that is there is replaced.
    cache: where points are kept (`compressor.cache.open_cache()`); None to keep none.
    Raises a UserError when an option is wrong, before anything is made. A point that fails says why, in its row.
    """
    return run_sweep(grid(model, flags), output=output, progress=progress, cache=cache)


def run_sweep(
    candidates: Sequence[Candidate],
    *,
    output: str | Path | None = None,
    progress: Progress = QUIET,
    cache: Cache | None = None,
) -> Sweep:
    """Make every candidate, and the dense model beside them. Raises a UserError when none of them can be made."""
    start = time.perf_counter()
    model = candidates[0].recipe.model
    output = Path(output) if output else Path(f"{driver.short_name(candidates[0].recipe)}-sweep")
    check_free(output, True, RESULT)
    maker = _Maker(cache, progress)
    dense_recipe = dataclasses.replace(candidates[0].recipe, passes=(), max_drop=None, back_off=False)
    everything = [Candidate({}, dense_recipe), *candidates]
    settled = [
        dataclasses.replace(one, recipe=driver.settle(one.recipe, driver.open_backend(one.recipe)))
        for one in everything
    ]
    dense, *points = [maker.make(one, f"{at} of {len(settled)}") for at, one in enumerate(settled, start=1)]
    dense = dataclasses.replace(dense, speeds=timed_beside(_usual(dense, points)))  # alone it is beside nothing
    spent = round(time.perf_counter() - start, 3)
    found = Sweep(model, dense, tuple(points), environment(), output.name, maker.cached, spent)
    _write(found, settled, output)
    return found


def _usual(dense: Point, points: Sequence[Point]) -> Point:
    """The point whose twin took the median time; the dense one where none was timed."""
    timed = sorted((point for point in points if point.speeds), key=lambda point: point.speeds[-1].dense_p50)
    return timed[len(timed) // 2] if timed else dense


class _Maker:
    """Makes points, or finds them in the cache."""

    def __init__(self, cache: Cache | None, progress: Progress):
        self.cache, self.progress, self.cached = cache, progress, 0
        self._models: dict[Any, str | None] = {}

    def make(self, candidate: Candidate, place: str) -> Point:
        """The point of a candidate; when it cannot be made, one that says why. The dense model must succeed."""
        key = self._key(candidate.recipe)
        kept = self.cache.get(POINTS, key) if self.cache and key else None
        if kept is not None:
            self.cached += 1
            return read_point(kept, candidate.varied)
        self.progress.say(f"{place}: {' '.join(candidate.varied.values()) or 'dense'}")
        try:
            point = self._export(candidate, key)
        except UserError as error:
            if not candidate.varied:
                raise
            return Point(dict(candidate.varied), str(candidate.recipe), failed=" ".join(str(error).split()))
        if self.cache and key:
            self.cache.put(POINTS, key, dataclasses.asdict(point))
        return point

    def _export(self, candidate: Candidate, key: str) -> Point:
        with self._folder(key) as folder:
            artifact = folder / "artifact"
            report = driver.export(
                None, candidate.recipe, output=artifact, overwrite=True, progress=self.progress, cache=self.cache
            )
            return point_of(report, artifact, candidate.varied)

    @contextmanager
    def _folder(self, key: str) -> Iterator[Path]:
        """A folder that a killed run finds again, so that training goes on where it was; else a temporary one."""
        if self.cache and key:
            with self.cache.scratch(key) as folder:
                yield folder
            return
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)

    def _key(self, recipe: Recipe) -> str:
        """By content; "" when nothing is kept, or when the source cannot tell its data from other data."""
        if self.cache is None:
            return ""
        opened = (recipe.model, recipe.data, recipe.window, recipe.seed, recipe.trust_remote_code)
        if opened not in self._models:
            self.progress.say("hash the model and its data")
            source = driver.open_source(None, recipe)
            self._models[opened] = model_digest(source, source.lower())
        model = self._models[opened]
        return point_key(model, recipe, environment()) if model else ""


def _write(found: Sweep, candidates: Sequence[Candidate], output: Path) -> None:
    """`sweep.json`, `sweep.html`, and each recipe, to export what was liked."""
    with staged(output, True, RESULT) as folder:
        (folder / RESULT).write_text(found.to_json(), encoding="utf-8")
        (folder / PAGE).write_text(page(found.model, found.dense, found.points, found.environment), encoding="utf-8")
        (folder / RECIPES).mkdir()
        for point, candidate in zip((found.dense, *found.points), candidates, strict=True):
            path = folder / RECIPES / f"{file_name(point)}.yaml"
            path.write_text(candidate.recipe.to_yaml(), encoding="utf-8")


def file_name(point: Point) -> str:
    """`2to4-wanda`: its name without what file systems dislike."""
    return re.sub(r"[^\w.+-]+", "-", point.name.replace(":", "to"))
