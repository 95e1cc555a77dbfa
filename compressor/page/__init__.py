"""`report.html`: one self-contained page made of `report.json` alone. It loads nothing, and reads without scripts."""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from compressor.artifact import ENGINE, REPORT
from compressor.errors import OutputError
from compressor.page.comparison import comparisons
from compressor.page.depth import depth_plots
from compressor.page.plot import Plot
from compressor.page.roofline import roofline_plot
from compressor.page.samples import agreement, samples
from compressor.page.table import site_table
from compressor.page.texture import texture_plot
from compressor.proof.report import Promise, as_json, read_report
from compressor.units import human_seconds

PAGE = "report.html"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """A page that was written: of which model, where, its bytes, and whether every promise in it is met.

    source: the report that it shows; weights, samples: how many of them. plots: their titles.
    """

    model: str
    path: str
    bytes: int
    is_met: bool
    promises: tuple[Promise, ...] = ()
    source: str = ""
    weights: int = 0
    samples: int = 0
    plots: tuple[str, ...] = ()

    def to_json(self) -> str:
        return as_json(self)


def write_page(folder: str | Path, path: str | Path | None = None) -> Page:
    """Write the page of an artifact's `report.json`, as `report.html` beside it unless a path is given.

    Raises OutputError when there is no report to read, or when the page cannot be written.
    """
    report = _finished(read_report(Path(folder)), Path(folder) / ENGINE)
    path = Path(path) if path else Path(folder) / PAGE
    text = render(report).encode()
    _write(path, text)
    promises = tuple(Promise(**one) for one in report["promises"])
    return Page(
        report["model"],
        str(path),
        len(text),
        all(one.met for one in promises),
        promises,
        str(Path(folder) / REPORT),
        len(report["sites"]),
        len(report["exhibits"]["samples"]),
        tuple(plot.title for plot in _plots(report)),
    )


def _finished(report: dict[str, Any], engine: Path) -> dict[str, Any]:
    """The report, with what became of it on the host that has built its engine since."""
    if not engine.is_file():
        return report
    built = json.loads(engine.read_text(encoding="utf-8"))
    judged = {promise["name"] for promise in built["promises"]}
    before = [promise for promise in report["promises"] if promise["name"] not in judged]
    timed = {"latency": built["latency"], "timed_on": f"{built['engine']['runtime']}, GPU"} if built["latency"] else {}
    return {**report, "promises": [*before, *built["promises"]], "engine": built["engine"], **timed}


def render(report: Mapping[str, Any]) -> str:
    """The page of a report, given as its JSON has it."""
    shown = samples(report["exhibits"])
    return _template().render(
        report=report,
        unmet=[promise for promise in report["promises"] if not promise["met"]],
        comparisons=comparisons(report),
        samples=shown,
        agreement=agreement(shown),
        plots=_plots(report),
        table=site_table(report["sites"]),
        notes=[text for text in (*report["notes"], report["gain"]) if text],
        facts=_facts(report),
    )


def _plots(report: Mapping[str, Any]) -> list[Plot]:
    """Those that the report has numbers for."""
    others = (texture_plot(report["exhibits"]["texture"]), roofline_plot(report))
    return [*depth_plots(report["sites"]), *(plot for plot in others if plot)]


@functools.cache
def _template() -> Template:
    made = environment(HERE)
    made.filters["breakable"] = _breakable
    return made.get_template("page.html")


def environment(*folders: Path) -> Environment:
    """Templates of a page: what is put in is escaped, and what is missing is an error."""
    loader = FileSystemLoader(folders)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after a dot."""
    return Markup(".<wbr>").join(name.split(".")) if name.count(".") > 1 else escape(name)


def _facts(report: Mapping[str, Any]) -> dict[str, str]:
    """How the artifact came about, as far as the report tells."""
    spent = report["seconds"]
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
    facts = {
        "model": report["origin"],
        "task": report["task"],
        "calibrated on": report["calibration"],
        "scored on": report["scores"]["samples"] if report["scores"] else f"nothing: {report['unscored']}",
        "timed on": report["timed_on"] if report["latency"] else "",
        "took": f"{human_seconds(sum(spent.values()))}: {steps}" if spent else "",
        "versions": ", ".join(f"{name} {version}" for name, version in report["environment"].items()),
    }
    return {name: text for name, text in facts.items() if text}


def _write(path: Path, text: bytes) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(text)
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}", found=error.strerror or "", hint="another --output") from None
    finally:
        partial.unlink(missing_ok=True)
