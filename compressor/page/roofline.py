"""The roofline: how fast each workload ran, below what memory and arithmetic of this processor allow on one thread.

Across: operations for each byte that must be moved. Up: operations per second. Both logarithmic.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from compressor.page.plot import Plot
from compressor.page.svg import Frame, decades, tag
from compressor.units import human_bytes, human_count

_BEYOND = (
    " More than 100 %: it fits into caches, multiplies in less than float32, or had more of the processor to itself."
)


@dataclass(frozen=True)
class Point:
    """One workload of one model: operations per byte, and per second."""

    whose: str
    workload: str
    intensity: float
    speed: float


def roofline_plot(report: Mapping[str, Any]) -> Plot | None:
    """The picture; None where the roofs were not measured, or no workload has both counts and times."""
    roofs, points = report["exhibits"]["roofs"], list(_points(report))
    if not roofs or not points:
        return None
    ridge = roofs["flops"] / roofs["bandwidth"]
    x = decades([ridge, *(point.intensity for point in points)], lambda t: f"{t:g}")
    y = decades([roofs["flops"], *(point.speed for point in points)], lambda t: f"{t / 1e9:g}")
    frame = Frame(x, y, height=230, left=40, right=14)
    marks = [_roof(frame, roofs), *(_dot(frame, point) for point in points), *_names(frame, points)]
    own = [point for point in points if point.whose == "artifact"]
    words = "; ".join(f"{point.workload} {100 * _share(point, roofs):.0f} %" for point in own)
    beyond = _BEYOND if any(_share(point, roofs) > 1 for point in own) else ""
    text = (
        f"Measured speed below the roofs of one thread here: a float32 product of matrices "
        f"({human_count(roofs['flops'])}FLOP/s) and a copy of memory ({human_bytes(roofs['bandwidth'])}/s; what "
        "fits into caches may pass it), each at its best; speed is from the median. Bytes: the file, inputs and "
        f"outputs. Reached of the roof: {words}.{beyond}"
    )
    return Plot("Roofline of latency, GFLOP/s", text, frame.draw("Roofline of latency", "FLOP per byte", marks))


def _points(report: Mapping[str, Any]) -> Iterator[Point]:
    traffic = report["exhibits"]["traffic"]
    counted = {one["workload"]: one for one in report["costs"]}
    sizes = {"dense": report["sizes"]["dense_bytes"], "artifact": report["sizes"]["artifact_bytes"]}
    for row in report["latency"]:
        name = row["workload"]
        if name not in traffic or name not in counted:
            continue
        for whose, kind in (("dense", "dense"), ("artifact", "compressed")):
            flops = counted[name][kind]["flops"]
            if flops:
                seconds = row["latency"][whose]["p50"] / 1000
                yield Point(whose, name, flops / (sizes[whose] + traffic[name]), flops / seconds)


def _limit(intensity: float, roofs: Mapping[str, float]) -> float:
    return min(roofs["flops"], intensity * roofs["bandwidth"])


def _share(point: Point, roofs: Mapping[str, float]) -> float:
    return point.speed / _limit(point.intensity, roofs)


def _roof(frame: Frame, roofs: Mapping[str, float]) -> Markup:
    """The slope of memory up to the ridge, then the flat of arithmetic, cut where the frame ends."""
    ridge = roofs["flops"] / roofs["bandwidth"]
    left = max(frame.x.least, frame.y.least / roofs["bandwidth"])
    corners = [(at, _limit(at, roofs)) for at in (left, ridge, frame.x.most)]
    path = "M" + "L".join(f"{frame.at_x(at):.1f} {frame.at_y(speed):.1f}" for at, speed in corners)
    return tag("path", class_="roof", d=path)


def _dot(frame: Frame, point: Point) -> Markup:
    title = f"{point.workload}, {point.whose}: {human_count(point.speed)}FLOP/s, {point.intensity:.2g} FLOP per byte"
    place = {"cx": frame.at_x(point.intensity), "cy": frame.at_y(point.speed)}
    return tag("circle", tag("title", title), class_=f"point {point.whose}", r=4.0, **place)


def _names(frame: Frame, points: list[Point]) -> Iterator[Markup]:
    """Each workload's name beside the lower of its points."""
    lowest: dict[str, Point] = {}
    for point in points:
        if point.workload not in lowest or point.speed < lowest[point.workload].speed:
            lowest[point.workload] = point
    for name, point in lowest.items():
        x, y = frame.at_x(point.intensity), frame.at_y(point.speed)
        at_right = x < frame.width * 0.6
        place = {"x": x + 8 if at_right else x - 8, "text_anchor": "start" if at_right else "end"}
        yield tag("text", name, y=y + 13 if y < frame.height - frame.bottom - 20 else y - 9, **place)
