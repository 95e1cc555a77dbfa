"""What a person reads of channel groups in a terminal."""

import re
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from compressor.channels.listing import GroupRecord
from compressor.layout import table


def show_channels(groups: Sequence[GroupRecord], blocks: Sequence[str], console: Console, verbose: bool) -> None:
    """One row for each group, or for each kind of group; then what stays whole, and the blocks."""
    made = table("channels of", "kind", "units", "weights each")
    for name, members in _alike([one for one in groups if not one.frozen], verbose):
        first = members[0]
        made.add_row(_label(name, members), first.kind, f"{first.units:,}", f"{first.weights:,}")
    console.print()
    console.print(made)
    for name, members in _alike([one for one in groups if one.frozen], verbose):
        console.print(Text(f"kept whole: {_label(name, members)} ({members[0].kind}): {members[0].frozen}"))
    if blocks:
        console.print(Text(f"{len(blocks)} residual blocks: {', '.join(_ends(blocks))}"))


def _alike(groups: Iterable[GroupRecord], verbose: bool) -> list[tuple[str, list[GroupRecord]]]:
    """Groups that differ in the numbers in their names alone, unless each is asked for."""
    found: dict[tuple[object, ...], list[GroupRecord]] = {}
    for one in groups:
        name = one.name if verbose else re.sub(r"\d+", "*", one.name)
        found.setdefault((name, one.kind, one.units, one.weights, one.frozen), []).append(one)
    return [(str(key[0]), members) for key, members in found.items()]


def _label(name: str, members: Sequence[GroupRecord]) -> str:
    return members[0].name if len(members) == 1 else f"{name} ({len(members)})"


def _ends(blocks: Sequence[str]) -> list[str]:
    return list(blocks) if len(blocks) <= 3 else [blocks[0], "...", blocks[-1]]
