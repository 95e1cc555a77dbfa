"""One row per weight, in the columns that say something in at least one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Site = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A heading, what stands below it, and how that is set: a number, a word or two that stay on a line, or text."""

    title: str
    cell: Callable[[Site], str]
    kind: Literal["number", "short", "text"] = "number"


@dataclass(frozen=True)
class Table:
    """Headings, rows of cells, and for each row what became of it: changed, left, refused, or broken."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]


COLUMNS = (
    Column("weight", lambda site: site["name"].removesuffix(".weight"), "text"),
    Column("shape", lambda site: " × ".join(map(str, site["shape"]))),
    Column("read by", lambda site: site["where"] or site["op"].removesuffix(".default"), "short"),
    Column("asked", lambda site: site["asked"]),
    Column("found", lambda site: _found(site)),
    Column("zeros", lambda site: _percent(site["sparsity"], 1)),
    Column("error", lambda site: _percent(site["relative_error"], 2)),
    Column("type", lambda site: site.get("dtype") or "", "short"),
    Column("rounding", lambda site: _percent(site.get("rounding_error"), 2)),
    Column("kernels", lambda site: " · ".join(filter(None, (site["verdict"], site["kernel"]))), "text"),
    Column("", lambda site: _status(site), "text"),
)


def site_table(sites: Sequence[Site]) -> Table:
    """The table of all sites, in the model's order."""
    used = tuple(column for column in COLUMNS if any(column.cell(site) for site in sites))
    rows = tuple(tuple(column.cell(site) for column in used) for site in sites)
    return Table(used, rows, tuple("broken" if site["holds"] is False else site["status"] for site in sites))


def _found(site: Site) -> str:
    return site["found"] or ("dense" if site["status"] != "changed" and site["sparsity"] is not None else "")


def _status(site: Site) -> str:
    if site["holds"] is False:
        return "broken: the file does not hold it"
    return f"{site['status']}: {site['reason']}" if site["reason"] else site["status"]


def _percent(value: Any, digits: int) -> str:
    if not isinstance(value, float):
        return ""
    least = 10.0**-digits
    return f"{100 * value:.{digits}f} %" if value == 0 or 100 * value >= least else f"< {least:g} %"
