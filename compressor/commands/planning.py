"""A plan: what a recipe would do to each site, what that takes, and what it brings, with no weight touched."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compressor.calibrate import input_of, measure
from compressor.driver import open_backend, open_source, resolve, settle
from compressor.graph import Feeds, Graph
from compressor.pipeline import Learner, Row, Weigher, format_pass
from compressor.progress import QUIET, Progress
from compressor.proof.proving import site_records
from compressor.proof.report import SiteRecord, as_json
from compressor.recipe import Recipe
from compressor.run import check_training, engine_shapes
from compressor.sites import WeightSite
from compressor.source import Backend

GEMM = 768  # side of the product that tells how fast this machine is
SAMPLE = 8  # calibration samples run to tell what all of them take


@dataclass(frozen=True)
class Cost:
    """An estimate for the passes alone. memory: peak bytes. seconds: on this machine, as fast as it is right now."""

    memory: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What would be done, and what it would cost. cost: None when no calibration is needed.

    training: how much would be learned, and how long that takes; "" when nothing is.
    """

    model: str
    origin: str
    recipe: str
    backend: str
    sites: tuple[SiteRecord, ...]
    cost: Cost | None
    calibration: str
    evaluation: str
    gain: str
    training: str = ""

    @property
    def n_changed(self) -> int:
        return sum(site.status == "changed" for site in self.sites)

    @property
    def share_changed(self) -> float:
        sizes = {site.name: torch.Size(site.shape).numel() for site in self.sites}
        changed = sum(sizes[site.name] for site in self.sites if site.status == "changed")
        return changed / max(sum(sizes.values()), 1)

    def to_json(self) -> str:
        return as_json(self)


def plan(model: Any, recipe: Recipe | str | None = None, *, progress: Progress = QUIET) -> Plan:
    """What `export` would do with the same arguments. Raises the UserErrors that it would raise."""
    recipe = resolve(model, recipe)
    backend = open_backend(recipe)
    recipe = settle(recipe, backend)
    source = open_source(model, recipe)
    progress.say("capture the graph")
    graph = source.lower()
    engine_shapes(backend, source, recipe, graph)
    rows = [row for one in recipe.passes for row in one.plan(graph)]
    changed = {row.site for row in rows if row.status == "changed"}
    sites = [dataclasses.replace(site, holds=None, where="") for site in site_records(graph, rows, {})]
    evaluation = source.evaluation(recipe.samples)
    check_training(recipe, source.training)
    learners = [one for one in recipe.passes if isinstance(one, Learner)]
    cost, calibration = None, "none is needed"
    if any(one.needs_data for one in recipe.passes):
        n = max(one.samples for one in recipe.passes)
        progress.say("measure a few calibration samples")
        sites_changed = [site for site in graph.sites if site.name in changed]
        n_back = max((one.gradient_samples for one in recipe.passes if isinstance(one, Weigher)), default=0)
        cost = _cost(graph, sites_changed, source.calibration(min(n, SAMPLE))[0], n, min(n, n_back))
        calibration = f"up to {n} samples from {source.calibration_description}"
    return Plan(
        recipe.model or source.name,
        source.origin,
        " | ".join([f"backend {recipe.backend}, {recipe.dtype}", *map(format_pass, recipe.passes)]),
        recipe.backend,
        tuple(sites),
        cost,
        calibration,
        evaluation.description if evaluation else "nothing: the data has no labels",
        _gain(backend, rows),
        "; ".join(one.foretell(graph, source.training(one.training_samples)) for one in learners),
    )


def _gain(backend: Backend, rows: Sequence[Row]) -> str:
    """What the last pattern that is asked for brings, or fewer channels do."""
    asked = [row.asked for row in rows if row.asked]
    if asked:
        return backend.gain(asked[-1])
    if any(row.shapes for row in rows):
        return "fewer channels are fewer operations and less memory, whatever the hardware"
    return "a dense model: nothing to gain but the runtime itself"


# *** cost ***


def _cost(graph: Graph, sites: Sequence[WeightSite], batch: Feeds, n: int, n_back: int) -> Cost:
    """From the forward pass of one batch and the speed of a matrix product, both measured now.

    n_back: samples that also go back through the whole dense model, which takes about two more forward passes and, for
    every site at once, the products of its inputs and those of its outputs' gradients.
    """
    one, rate = measure(graph, sites, batch), _rate()
    size = len(next(iter(batch.values())))
    times, back = n / size, n_back / size
    seconds = 2 * times * one.forward_seconds  # each segment runs once to be seen and once with its new weights
    seconds += sum(_flops(site, times * one.rows[site], is_first) for site, is_first in _first_of_input(sites)) / rate
    products = {site: site.groups * site.d**2 + site.m**2 / site.groups for site in sites if n_back}
    seconds += 3 * back * one.forward_seconds
    seconds += sum(2 * back * one.rows[site] * product for site, product in products.items()) / rate
    weights = sum(x.numel() * x.element_size() for x in graph.module.parameters())
    held = times * one.live_bytes + max(one.segment_statistics, default=0) + 4 * sum(products.values())
    return Cost(weights + held + _workspace(sites), seconds)


def _first_of_input(sites: Sequence[WeightSite]) -> list[tuple[WeightSite, bool]]:
    """Each site, and whether it is the first to read its input: later ones share the Gram matrix."""
    seen: set[Any] = set()
    pairs = []
    for site in sites:
        key = input_of(site)
        pairs.append((site, key not in seen))
        seen.add(key)
    return pairs


def _flops(site: WeightSite, rows: float, has_own_gram: bool) -> float:
    """Gram matrix, factorization and solve, and ten refit steps (solvers.md counts them alike)."""
    d, m = site.d, site.m // site.groups
    gram = 2 * min(rows, 64 * d if site.layout == "kernel" else rows) * d * d if has_own_gram else 0
    return site.groups * (gram + d**3 / 3 + 24 * m * d * d)


def _workspace(sites: Sequence[WeightSite]) -> float:
    """The largest site's factor and its copies of the weight, in float32."""
    return max((4 * (3 * site.d**2 + 6 * site.d * site.m / site.groups) for site in sites), default=0)


def _rate() -> float:
    """Floating-point operations per second of one matrix product, the best of three."""
    A, best = torch.randn(GEMM, GEMM), 0.0
    for _ in range(3):
        start = time.perf_counter()
        A @ A
        best = max(best, 2 * GEMM**3 / (time.perf_counter() - start))
    return best
