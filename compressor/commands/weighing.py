"""What zeros cost, site by site, before any is made: what `compress sensitivity` shows."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from compressor.driver import open_source, resolve
from compressor.errors import RecipeError
from compressor.pipeline import Context, SiteLoss, Weigher, format_pass, make_pass
from compressor.progress import QUIET, Progress
from compressor.proof.report import as_json
from compressor.recipe import Recipe

ANY = {"pattern": "0.5"}
"""Where nothing says what is to be removed, curves are shown, and half of each weight."""


@dataclass(frozen=True)
class Weighing:
    """sites: in the order of the graph. unit: of their losses. calibration: the samples that told."""

    model: str
    origin: str
    recipe: str
    unit: str
    calibration: str
    sites: tuple[SiteLoss, ...]

    def to_json(self) -> str:
        return as_json(self)


def sensitivity(model: Any, recipe: Recipe | str | None = None, *, progress: Progress = QUIET) -> Weighing:
    """Measure what zeros would cost the dense model, site by site. Raises the UserErrors that `export` would."""
    recipe = resolve(model, recipe)
    if not recipe.passes:
        recipe = dataclasses.replace(recipe, passes=(make_pass("sparsify", ANY),))
    weighers = [one for one in recipe.passes if isinstance(one, Weigher)]
    if not weighers or weighers[0] is not recipe.passes[0]:
        raise RecipeError(
            f"{recipe.passes[0].name} does not tell what its changes cost",
            found="only the zeros of a dense model are weighed",
            hint="compress sensitivity MODEL --sparsity 2:4",
        )
    source = open_source(model, recipe)
    progress.say("capture the graph")
    is_logits = getattr(source, "is_logits", True)
    context = Context(source.calibration, recipe.seed, progress, is_logits=is_logits)
    sites = weighers[0].weigh(source.lower(), context)
    unit = "nats of KL divergence" if is_logits else "half the squared error, as a share of the output's energy"
    return Weighing(
        recipe.model or source.name,
        source.origin,
        format_pass(recipe.passes[0]),
        unit,
        source.calibration_description,
        tuple(sites),
    )
