"""What a person reads of two models that differ."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compressor.cli.sites import filled, kind, span
from compressor.commands.diffing import Diff, Half, WeightChange
from compressor.layout import table


def show_diff(found: Diff, console: Console, verbose: bool = False) -> None:
    """Operators, then one row per weight that differs, or per kind of weight."""
    console.print(Text.assemble(("the same" if found else "different", "bold"), f"  {found.before} and {found.after}"))
    if found.unlike:
        console.print(Text(found.unlike, style="dim"))
    if found.operators:
        made = table("operators", "before", "after")
        for one in found.operators:
            made.add_row(one.op, str(one.before), str(one.after))
        console.print(made)
    differ = [one for one in found.weights if not one.is_same]
    if differ:
        console.print(_change_table(differ, verbose))
    console.print(f"{len(found.weights) - len(differ)} of {len(found.weights)} weights are the same")
    if found.lines and not verbose:
        console.print(Text(f"{_n_changed(found.lines)} lines of the graph differ: --verbose shows them", style="dim"))
    for line in found.lines if verbose else ():
        console.print(Text(line, style={"+": "green", "-": "red"}.get(line[0], "dim")), soft_wrap=True)


def _n_changed(lines: Sequence[str]) -> int:
    return sum(line[0] in "+-" and not line.startswith(("---", "+++")) for line in lines)


def _change_table(changes: Sequence[WeightChange], verbose: bool) -> Table:
    rows: dict[tuple[str, ...], list[WeightChange]] = {}
    for one in changes:
        name = one.name if verbose else kind(one.name)
        cells = [_turned(*("" if half is None else text(half) for half in (one.before, one.after))) for text in _HALF]
        rows.setdefault((name, *cells), []).append(one)
    made = []
    for (name, *cells), members in rows.items():
        label = f"{name} ({len(members)})" if len(members) > 1 else members[0].name
        zeros = (span([getattr(one, side) for one in members if getattr(one, side)], "zeros", "{:.0%}")
                 for side in ("before", "after"))  # fmt: skip
        made.append([label, *cells, _turned(*zeros), span(members, "relative_difference", "{:.2%}")])
    return filled(made, "weight", "shape", "type", "pattern", "zeros", "difference")


_HALF: tuple[Callable[[Half], str], ...] = (
    lambda half: "x".join(map(str, half.shape)),
    lambda half: half.dtype,
    lambda half: half.found or ("dense" if half.where else ""),
)


def _turned(before: str, after: str) -> str:
    """What it was and what it is, once where that is the same."""
    return before if before == after else f"{before or 'none'} > {after or 'none'}"
