"""Weights in a terminal: one row each, or one for each kind of weight."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.layout import table
from compressor.proof.report import SiteRecord

MARK = {True: ("yes", "green"), False: ("NO", "bold red")}


def site_table(sites: Sequence[SiteRecord], verbose: bool) -> RenderableType:
    """One row per site, or per kind of site: `transformer.h.*.mlp.c_fc.weight (4)`."""
    rows: list[list[Any]] = []
    notes: dict[tuple[str, str], list[str]] = {}
    for name, members in _groups(sites, verbose):
        first = members[0]
        label = f"{name} ({len(members)})" if len(members) > 1 else name
        rows.append([
            label, _by(first.shape), _by(first.dense_shape or ()), "" if first.axis < 0 else str(first.axis),
            _pattern_cell(first),
            span(members, "sparsity", "{:.0%}"), span(members, "relative_error", "{:.1%}"), _sparse_cell(first),
            first.dtype if first.dtype.startswith("int") else "", span(members, "rounding_error", "{:.2%}"),
        ])  # fmt: skip
        if first.reason:
            notes.setdefault((first.status, first.reason), []).append(label)
    lines = [
        Text.assemble(("refused: ", "bold red") if status == "refused" else "", f"{', '.join(names)}: {reason}")
        for (status, reason), names in notes.items()
    ]
    return Group(
        filled(rows, "weight", "shape", "was", "axis", "pattern", "zeros", "error", "kernels", "type", "rounding"),
        *lines,
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def filled(rows: Sequence[Sequence[Any]], *titles: str) -> Table:
    """A table of the columns that say something in at least one row."""
    used = [at for at in range(len(titles)) if any(str(row[at]) for row in rows)]
    made = table(*(titles[at] for at in used))
    for row in rows:
        made.add_row(*(row[at] for at in used))
    return made


def _groups(sites: Sequence[SiteRecord], verbose: bool) -> list[tuple[str, list[SiteRecord]]]:
    groups: dict[Any, list[SiteRecord]] = {}
    for site in sites:
        name = site.name if verbose else kind(site.name)
        found = "" if site.holds is not None else site.found  # chance patterns of a ratio do not part the like
        key = (
            name,
            site.shape,
            site.status,
            site.reason,
            site.asked,
            found,
            site.holds,
            str(_sparse_cell(site)),
            site.dtype,
        )
        groups.setdefault(key, []).append(site)
    labels = [_shown(members[0], verbose) if len(members) == 1 else key[0] for key, members in groups.items()]
    return list(zip(labels, groups.values(), strict=True))


def kind(name: str) -> str:
    """The name of what is like it: layer numbers as stars."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name.removesuffix(".weight"))


def _shown(site: SiteRecord, verbose: bool) -> str:
    return site.name if verbose else site.name.removesuffix(".weight")


def _pattern_cell(site: SiteRecord) -> Text:
    if site.holds is not None:
        mark, color = MARK[site.holds]
        return Text.assemble(_change(site), " " if _change(site) else "", (mark, color))
    if site.status == "changed":
        return Text(_change(site))
    return Text(site.found or ("refused" if site.status == "refused" else "dense"), style="dim")


def _change(site: SiteRecord) -> str:
    """What became of its values and its shape; "" where only its type is another."""
    if site.asked or not site.shape:
        return site.asked or "gone"
    return "" if site.dtype.startswith("int") and site.dense_shape is None else "smaller"


def _sparse_cell(site: SiteRecord) -> str:
    """Whether sparse kernels can take it, and once an engine has told, which kind it got."""
    word = re.split("[:;]", site.verdict, maxsplit=1)[0]
    return f"{word}, {site.kernel.split()[0]}" if site.kernel else word


def span(members: Iterable[Any], field: str, form: str) -> str:
    values = [value for value in (getattr(site, field) for site in members) if value is not None]
    if not values:
        return ""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}-{high}"
