"""`sweep.html`: one self-contained page, no script, in the style of a report's."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

from compressor import page as report_page
from compressor.commands.sweeping.pareto import COSTS, front
from compressor.commands.sweeping.plot import legend, picture
from compressor.commands.sweeping.point import Point
from compressor.units import human_bytes, human_count, human_seconds

TEXTS = {
    "non-zero weights": human_count,
    "time, dense = 1": lambda value: f"{value:.3g}",
    "zipped file": human_bytes,
}


def page(model: str, dense: Point, points: Sequence[Point], versions: Mapping[str, str]) -> str:
    """The HTML text: plots first, then every point beside the dense model, then how it was measured."""
    made = [point for point in points if not point.failed]
    return _template().render(
        model=model,
        points=[dense, *points],
        n_points=len(points),
        dense=dense,
        failed=[point for point in points if point.failed or point.unmet],
        pictures=_pictures(dense, points),
        legend=legend(made),
        names=list(dict.fromkeys(name for point in points for name in point.varied)),
        best=[point.name for point in front([dense, *points], COSTS["non-zero weights"])],
        workloads=[speed.workload for speed in dense.speeds],
        has_tokens=any(point.tokens_per_second for point in points),
        facts=_facts(dense, made, versions),
    )


@functools.cache
def _template() -> Template:
    made = report_page.environment(Path(__file__).parent, report_page.HERE)
    made.filters |= {"bytes": human_bytes, "seconds": human_seconds}
    return made.get_template("sweep.html")


def _pictures(dense: Point, points: Sequence[Point]) -> dict[str, Markup]:
    drawn = {name: picture(points, dense, cost, name, TEXTS[name]) for name, cost in COSTS.items()}
    return {name: svg for name, svg in drawn.items() if svg}


def _facts(dense: Point, made: Sequence[Point], versions: Mapping[str, str]) -> dict[str, str]:
    own = made[0].facts if made else dense.facts
    workload = f", {dense.speeds[0].workload}" if dense.speeds else ""
    return {
        "model": dense.facts["origin"],
        "scored on": dense.facts["scored on"],
        "calibrated on": own["calibrated on"],
        "timed on": f"{own['timed on']}{workload}; each point in turn with a dense twin",
        "zipped": "the model's files after deflate; a runtime reads them unpacked",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
