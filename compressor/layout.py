"""How tables look in a terminal: no lines, the first column to the left and figures to the right."""

import re
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

INDENT = "  "


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
    """A table whose rows begin with a name."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        named = [Name(cell) if at == 0 and isinstance(cell, str) and cell else cell for at, cell in enumerate(cells)]
        super().add_row(*named, **options)


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
    made = _Rows(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        made.add_column(column, overflow="fold", justify="left" if position == 0 else "right")
    return made


def facts() -> Table:
    """Two columns: a name, and what there is to say of it."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True, style="bold")
    made.add_column()
    return made
