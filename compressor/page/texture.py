"""The texture of a pruned weight: zeros stay empty, the kept ones are cells, darker the larger they are."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from compressor.page.plot import Plot
from compressor.page.svg import drawing, tag

WIDTH, EDGE, GAP = 360.0, 2.0, 2.4
PLUS, MINUS = "123456789", "abcdefghi"


def texture_plot(texture: Mapping[str, Any] | None) -> Plot | None:
    """The picture of an exhibit, its columns in the groups of its N:M pattern; None where there is none."""
    if not texture or not texture["rows"]:
        return None
    rows, pattern = texture["rows"], texture["pattern"]
    group = int(pattern.partition(":")[2] or len(rows[0]))
    cell = _cell(len(rows[0]), group)
    marks = [_cells(rows, level, group, cell) for level in PLUS + MINUS]
    n_zeros = sum(row.count(".") for row in rows) / sum(map(len, rows))
    groups = f", in groups of {group}" if ":" in pattern else ""
    text = (
        f"The first {len(rows)} rows and {len(rows[0])} columns of {texture['site'].removesuffix('.weight')} in the "
        f"written file, the contracted axis from left to right{groups}. Empty: zero ({100 * n_zeros:.0f} %); blue: "
        "positive; orange: negative; the stronger, the larger."
    )
    title = f"Texture of a weight at {pattern}" if pattern else "Texture of a weight"
    return Plot(title, text, drawing(title, WIDTH, len(rows) * cell + 2 * EDGE, [mark for mark in marks if mark]))


def _cell(columns: int, group: int) -> float:
    gaps = (columns - 1) // group
    return min(8.0, (WIDTH - 2 * EDGE - gaps * GAP) / columns)


def _cells(rows: list[str], level: str, group: int, cell: float) -> Markup | None:
    """All cells of one size and sign as one path: thousands of elements would make the page slow."""
    path = "".join(_row(row, level, group, cell, EDGE + i * cell) for i, row in enumerate(rows))
    if not path:
        return None
    strength = (PLUS + MINUS).index(level) % len(PLUS) + 1
    sign = "plus" if level in PLUS else "minus"
    return tag("path", class_=sign, opacity=0.3 + 0.7 * (strength - 1) / (len(PLUS) - 1), d=path)


def _row(row: str, level: str, group: int, cell: float, y: float) -> str:
    side = cell - 0.6
    places = (EDGE + k * cell + k // group * GAP for k, character in enumerate(row) if character == level)
    return "".join(f"M{x:.1f} {y:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z" for x in places)
