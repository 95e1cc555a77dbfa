"""Two pictures over the depth of the model: what each site's outputs have lost, and how many weights are zero."""

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.page.plot import Plot
from compressor.page.svg import Axis, Frame, decades, tag

LABELLED = 3
"""Sites with the largest errors, which are named in the picture."""


def depth_plots(sites: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """The pictures that the sites have numbers for."""
    return [plot for plot in (_errors(sites), _zeros(sites)) if plot]


def _errors(sites: Sequence[Mapping[str, Any]]) -> Plot | None:
    """A dot per site: squared change of its outputs as a share of their energy; a ring for what rounding added."""
    series = {"relative_error": "dot", "rounding_error": "ring"}
    found = {name: _positive(sites, name) for name in series}
    values = [value for points in found.values() for _, value in points]
    if not values:
        return None
    frame = Frame(_places(len(sites)), decades(values, lambda t: f"{100 * t:g} %"), left=56)
    marks = [
        tag("circle", tag("title", f"{_short(sites[i])}: {100 * value:.2f} %"), class_=series[name],
            cx=frame.at_x(i + 1), cy=frame.at_y(value), r=_radius(len(sites)))
        for name, points in found.items() for i, value in points
    ]  # fmt: skip
    named = sorted(found["relative_error"] or found["rounding_error"], key=lambda point: -point[1])[:LABELLED]
    worst = ", ".join(f"{_short(sites[i])} ({100 * value:.1f} %)" for i, value in named)
    rings = " Rings: what rounding to codes alone has cost." if found["rounding_error"] else ""
    text = f"Change of each weight's outputs on calibration data, as a share of their energy. Most: {worst}.{rings}"
    return Plot("Error by depth", text, frame.draw("Error by depth", _NAME, marks))


def _zeros(sites: Sequence[Mapping[str, Any]]) -> Plot | None:
    """A bar per site that the file holds."""
    found = [(i, site) for i, site in enumerate(sites) if isinstance(site["sparsity"], float)]
    if not found:
        return None
    y = Axis(0, 1, [0, 0.25, 0.5, 0.75, 1], lambda t: f"{100 * t:g} %")
    frame = Frame(_places(len(sites)), y)
    width = max(0.6, 0.7 * (frame.at_x(2) - frame.at_x(1)))
    marks = []
    for i, site in found:
        top, title = frame.at_y(site["sparsity"]), f"{_short(site)}: {100 * site['sparsity']:.1f} %, {site['status']}"
        marks.append(tag(
            "rect", tag("title", title), class_=f"zeros {site['status']}",
            x=frame.at_x(i + 1) - width / 2, y=top, width=width, height=max(frame.at_y(0) - top, 0.8),
        ))  # fmt: skip
    text = "Share of zeros in each weight, re-read from the written file. Blue: changed; grey: left as it was"
    refused = any(site["status"] == "refused" for _, site in found)
    return Plot(
        "Zeros by depth", text + ("; red: refused." if refused else "."), frame.draw("Zeros by depth", _NAME, marks)
    )


_NAME = "weight, in order of first use"


def _short(site: Mapping[str, Any]) -> str:
    return site["name"].removesuffix(".weight")


def _positive(sites: Sequence[Mapping[str, Any]], field: str) -> list[tuple[int, float]]:
    values = ((i, site.get(field)) for i, site in enumerate(sites))
    return [(i, value) for i, value in values if isinstance(value, float) and value > 0]


def _places(n: int) -> Axis:
    """Sites 1 to n, some of them numbered."""
    step = max(1, -(-n // 6))
    return Axis(0.5, n + 0.5, range(1, n + 1, step), lambda t: f"{t:g}")


def _radius(n: int) -> float:
    return 3.0 if n <= 60 else 1.8
