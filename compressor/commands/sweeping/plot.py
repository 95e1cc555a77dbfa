"""Points as scatter plots: one picture for each cost, one colour and one shape for whatever is drawn alike."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from compressor.commands.sweeping.pareto import Cost, front
from compressor.commands.sweeping.point import Point
from compressor.flags import NONE
from compressor.page.svg import Axis, Frame, tag

Text = Callable[[float], str]

TICKS = 5
LOG_FROM = 8.0  # perplexities that differ by more than this factor are drawn on a logarithmic axis
SHAPES = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-4,-4h8v8h-8z", "M0,-5L4.8,4H-4.8z", "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
          "M0,5L4.8,-4H-4.8z", "M-5,-1.7h3.3v-3.3h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3z")  # fmt: skip
STAR = "M0,-7L1.8,-2.2H7L2.8,0.9L4.4,6L0,3L-4.4,6L-2.8,0.9L-7,-2.2H-1.8z"


def picture(points: Sequence[Point], dense: Point, cost: Cost, name: str, text: Text) -> Markup:
    """The score against a cost, the front as a line; empty when no point has both. text: writes a cost."""
    shown = [point for point in (*points, dense) if point.is_scored and cost(point) is not None]
    if not [point for point in shown if point.varied]:
        return Markup("")
    frame = Frame(_linear([cost(point) or 0.0 for point in shown], text), _scores(shown), height=240)
    kinds = {series: at % len(SHAPES) for at, series in enumerate(dict.fromkeys(map(kind, points)))}
    marks = [_level(dense, frame), _front(front(shown, cost), frame, cost)]
    marks += [_mark(point, frame, cost, kinds.get(kind(point))) for point in shown]
    return frame.draw(f"{shown[0].metric} against {name}", name, marks)


def legend(points: Sequence[Point]) -> list[tuple[Markup, str]]:
    """Each mark, and what it stands for."""
    kinds = enumerate(dict.fromkeys(map(kind, points)))
    return [(_swatch(at % len(SHAPES)), name) for at, name in kinds] + [(_swatch(None), "dense")]


def kind(point: Point) -> str:
    """What a point has in common with those it is drawn like: all that varies but the sparsity; "" if it is dense."""
    others = [f"no {name}" if value == NONE else value for name, value in point.varied.items() if name != "sparsity"]
    return " ".join(others) or ("compressed" if point.varied else "")


# *** parts ***


def _level(dense: Point, frame: Frame) -> Markup:
    if dense.value is None:
        return Markup("")
    y = frame.at_y(dense.value)
    return tag("line", class_="level", x1=frame.left, x2=frame.width - frame.right, y1=y, y2=y)


def _front(points: Sequence[Point], frame: Frame, cost: Cost) -> Markup:
    corners = " ".join("{:.1f},{:.1f}".format(*_place(point, frame, cost)) for point in points)
    return tag("polyline", class_="front", points=corners)


def _mark(point: Point, frame: Frame, cost: Cost, series: int | None) -> Markup:
    x, y = _place(point, frame, cost)
    title = tag("title", f"{point.name}: {point.metric} {_number(point.value or 0.0)}")
    return tag("path", title, **_look(series), transform=f"translate({x:.1f},{y:.1f})")


def _place(point: Point, frame: Frame, cost: Cost) -> tuple[float, float]:
    return frame.at_x(cost(point) or 0.0), frame.at_y(point.value or 0.0)


def _look(series: int | None) -> dict[str, str]:
    """Class and shape of a mark; None for the dense model's."""
    if series is None:
        return {"class_": "mark star", "d": STAR}
    return {"class_": f"mark series-{series}", "d": SHAPES[series]}


def _swatch(series: int | None) -> Markup:
    return tag("svg", tag("path", **_look(series)), class_="swatch", viewBox="-8 -8 16 16", aria_hidden="true")


# *** axes ***


def _scores(points: Sequence[Point]) -> Axis:
    values = [point.value for point in points if point.value is not None]
    low, high = min(values), max(values)
    if points[0].higher_is_better or low <= 0 or high / low < LOG_FROM:
        return _linear(values, _number)
    low, high = low / 1.2, high * 1.2
    return Axis(low, high, log_ticks(low, high), _number, is_log=True)


def _linear(values: Sequence[float], text: Text) -> Axis:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    return Axis(low, high, round_ticks(low, high), text)


def round_ticks(low: float, high: float) -> list[float]:
    """About TICKS multiples of 1, 2, 2.5 or 5 times a power of ten."""
    least = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * least)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; powers of ten alone where there would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    return found if len(found) <= 2 * TICKS else [value for value in found if math.log10(value).is_integer()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
