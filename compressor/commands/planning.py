"""A plan: what a recipe would do to each site, what that takes, and what it brings, with no weight touched."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compressor.commands.estimate import SAMPLE, WHOLE_BATCH, Cost, estimate
from compressor.driver import open_backend, open_source, resolve, settle
from compressor.pipeline import Blockwise, Learner, Row, Weigher, format_pass
from compressor.progress import QUIET, Progress
from compressor.proof.proving import site_records
from compressor.proof.report import SiteRecord, as_json
from compressor.recipe import Recipe
from compressor.run import calibrated_on, check_training, engine_shapes
from compressor.source import Backend


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
    types = {row.site: row.dtype for row in rows if row.dtype}
    sites = [
        dataclasses.replace(site, holds=None, where="", dtype=types.get(site.name, ""))
        for site in site_records(graph, rows, {})
    ]
    evaluation = source.evaluation(recipe.samples)
    check_training(recipe, source.training)
    learners = [one for one in recipe.passes if isinstance(one, Learner)]
    cost, calibration = None, "none is needed"
    if any(one.needs_data for one in recipe.passes):
        described, n = calibrated_on(source, recipe), max(one.samples for one in recipe.passes)
        progress.say("measure a few calibration samples")
        sites_changed = [site for site in graph.sites if site.name in changed]
        n_back = max((one.gradient_samples for one in recipe.passes if isinstance(one, Weigher)), default=0)
        efforts = [one.effort(graph) for one in recipe.passes if isinstance(one, Blockwise)]
        # A step of Adam takes a batch, whatever its size.
        few = WHOLE_BATCH if any(one.steps for one in efforts) else SAMPLE
        cost = estimate(graph, sites_changed, source.calibration(min(n, few))[0], n, min(n, n_back), efforts)
        calibration = f"up to {n} samples from {described}"
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
    """What the last pattern that is asked for brings, and fewer channels and codes do."""
    asked = [row.asked for row in rows if row.asked]
    types = " and ".join(sorted({row.dtype for row in rows if row.dtype}))
    gains = [
        "fewer channels are fewer operations and less memory, whatever the hardware." if _shrinks(rows) else "",
        f"weights in {types} are fewer bytes, multiplied by kernels for codes." if types else "",
        backend.gain(asked[-1]) if asked else "",
    ]
    return " ".join(filter(None, gains)) or "a dense model: nothing to gain but the runtime itself"


def _shrinks(rows: Sequence[Row]) -> bool:
    return any(row.shapes for row in rows)
