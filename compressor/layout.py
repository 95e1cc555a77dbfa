"""How tables look in a terminal: no lines, the first column to the left and figures to the right."""

from rich.table import Table


def table(*columns: str) -> Table:
    """A table with these titles, cells folded where they are too long."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        made.add_column(column, overflow="fold", justify="left" if position == 0 else "right")
    return made


def facts() -> Table:
    """Two columns: a name, and what there is to say of it."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True, style="bold")
    made.add_column()
    return made
