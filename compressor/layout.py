"""How tables look in a terminal: no lines, the first column to the left and figures to the right."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

INDENT = "  "
PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": "bold", "padding": (0, 2, 0, 0)}


class Name:
    """A dotted name or a path, which goes on in the next line after a dot or a slash where the column is too narrow."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(len, _pieces(self.text))), len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(folded(self.text, options.max_width)), overflow="fold")


class _Rows(Table):
    """A table whose rows begin with a name, which gets a line of its own where the figures leave it no room."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        named = [Name(cell) if at == 0 and isinstance(cell, str) and cell else cell for at, cell in enumerate(cells)]
        super().add_row(*named, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.columns:
            return
        names, figures = list(self.columns[0].cells), self._figures()
        if not self._is_crowded(names, options.max_width - Measurement.get(console, options, figures).maximum):
            yield from super().__rich_console__(console, options)
            return
        lines = console.render_lines(figures, options.update(width=options.max_width - len(INDENT)), pad=False)
        if len(lines) != 1 + len(names):  # figures that need more than a line each
            yield from super().__rich_console__(console, options)
            return
        for name, line in zip((Text(str(self.columns[0].header), style="bold"), *names), lines, strict=True):
            yield from (name, Segment(INDENT), *line, Segment.line())

    def _figures(self) -> Table:
        """Every column but the first."""
        made = Table(**PLAIN)
        for column in self.columns[1:]:
            made.add_column(column.header, overflow="fold", justify=column.justify)
        for cells in zip(*(column.cells for column in self.columns[1:]), strict=True):
            made.add_row(*cells)
        return made

    @staticmethod
    def _is_crowded(names: Sequence[Any], room: int) -> bool:
        """Whether a name would take more than two lines."""
        return any(isinstance(name, Name) and len(folded(name.text, room)) > 2 for name in names)


def folded(name: str, width: int) -> list[str]:
    """Its lines of at most `width` characters, where its parts are no longer; all but the first are indented."""
    lines = [""]
    for piece in _pieces(name):
        if lines[-1].strip() and len(lines[-1] + piece) > width:
            lines.append(INDENT)
        lines[-1] += piece
    return lines


def _pieces(name: str) -> list[str]:
    return re.findall(r"[^./]*[./]|[^./]+$", name) or [name]


def table(*columns: str) -> Table:
    """A table with these titles, cells folded where they are too long."""
    made = _Rows(**PLAIN)
    for position, column in enumerate(columns):
        made.add_column(column, overflow="fold", justify="left" if position == 0 else "right")
    return made


def facts() -> Table:
    """Two columns: a name, and what there is to say of it."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True, style="bold")
    made.add_column(overflow="fold")
    return made


def in_words(versions: Mapping[str, str]) -> str:
    """`torch 2.13.0, onnx 1.23.2`: what is installed."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version != "not installed")
