"""Pictures as inline SVG: elements, and a frame with axes. Colours are classes, so that the page's scheme sets them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Scale = Callable[[float], float]
HALF = 3.2
"""Half of a character's width, so that no label is cut at the right edge."""


def tag(name: str, *inside: str, **attributes: object) -> Markup:
    """One element; text is escaped, elements are not, `class_` and `text_anchor` become `class` and `text-anchor`."""
    written = "".join(f' {key.strip("_").replace("_", "-")}="{_value(x)}"' for key, x in attributes.items())
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup(written), Markup("").join(map(escape, inside)))


def _value(x: object) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".") if isinstance(x, float) else escape(x)


@dataclass(frozen=True)
class Axis:
    """One axis: from least to most, linear or logarithmic, with its ticks and how they are written."""

    least: float
    most: float
    ticks: Sequence[float]
    text: Callable[[float], str]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        low, high, at = self.least, self.most, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)


def decades(values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """A logarithmic axis of whole decades, at least one, around positive values."""
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    step = max(1, math.ceil((high - low) / 5))
    return Axis(10.0**low, 10.0**high, [10.0**k for k in range(low, high + 1, step)], text, is_log=True)


@dataclass(frozen=True)
class Frame:
    """The area in which a picture is drawn, in units that are pixels on a telephone."""

    x: Axis
    y: Axis
    width: float = 360
    height: float = 200
    left: float = 48
    right: float = 8
    top: float = 10
    bottom: float = 30

    def at_x(self, value: float) -> float:
        return self.left + self.x.share(value) * (self.width - self.left - self.right)

    def at_y(self, value: float) -> float:
        return self.height - self.bottom - self.y.share(value) * (self.height - self.bottom - self.top)

    def draw(self, title: str, x_title: str, marks: Sequence[Markup]) -> Markup:
        """The picture: grid, axes, marks; the title is for those who cannot see it."""
        foot = self.height - self.bottom
        grid = [
            tag("line", class_="grid", x1=self.left, x2=self.width - self.right, y1=self.at_y(t), y2=self.at_y(t))
            for t in self.y.ticks
        ]
        labels = [
            tag("text", self.y.text(t), x=self.left - 6, y=self.at_y(t) + 3.5, text_anchor="end") for t in self.y.ticks
        ]
        for text, x in ((self.x.text(t), self.at_x(t)) for t in self.x.ticks):
            inside = min(x, self.width - HALF * len(text))
            labels.append(tag("text", text, x=inside, y=foot + 13, text_anchor="middle"))
        middle = (self.left + self.width - self.right) / 2
        name = tag("text", x_title, class_="name", x=middle, y=self.height - 4, text_anchor="middle")
        base = tag("line", class_="base", x1=self.left, x2=self.width - self.right, y1=foot, y2=foot)
        return drawing(title, self.width, self.height, [*grid, *labels, base, *marks, name])


def drawing(title: str, width: float, height: float, inside: Sequence[Markup]) -> Markup:
    """An `svg` element as wide as its column."""
    return tag("svg", tag("title", title), *inside, viewBox=f"0 0 {width:g} {height:g}", role="img")
