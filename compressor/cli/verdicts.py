"""Promises, scores, costs and times in a terminal."""

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.cli.sites import MARK
from compressor.layout import table
from compressor.proof.costs import CostChange
from compressor.proof.latency import Comparison, Latency
from compressor.proof.report import Promise, Report, Scores, Unquantized
from compressor.units import human_bytes, human_count

BESIDE = {"not quantized": "not quantized", "onnxruntime": "onnxruntime, CPU"}  # what else is timed, and its title


def word_of(is_met: bool) -> tuple[str, str]:
    """The verdict and its style."""
    return ("PASSED", "bold green") if is_met else ("NOT MET", "bold red")


def promise_table(promises: Sequence[Promise]) -> Table:
    made = Table.grid(padding=(0, 1))
    made.add_column(no_wrap=True)
    made.add_column()
    for promise in promises:
        mark, color = MARK[promise.met]
        made.add_row(Text(f"  {mark:>3}", style=color), Text.assemble(promise.name, (f": {promise.detail}", "dim")))
    return made


def score_table(report: Report) -> RenderableType:
    scores = report.scores
    if scores is None:
        return Text(f"Not scored: {report.unscored}")
    made = table(scores.dense.metric, "", "standard error")
    before = report.unquantized.score if report.unquantized else None
    rows = {
        "dense": scores.dense,
        "not quantized": before,
        "compressed": scores.compressed,
        "artifact": scores.artifact,
    }
    for name, score in rows.items():
        if score is None:
            continue
        where = "in torch" if name != "artifact" else f"in {report.ran_in or report.backend.split()[0]}"
        made.add_row(f"{name}, {where}", f"{score.value:.2f}", f"{score.stderr:.2f}")
    return Group(
        made,
        Text(_drop_line(scores)),
        *_beside_unquantized(report.unquantized, scores.unit),
        Text(f"scored on {scores.samples}\ncalibrated on {report.calibration}", style="dim"),
    )


def _beside_unquantized(one: Unquantized | None, unit: str) -> list[Text]:
    """What codes alone cost."""
    if one is None or one.drop is None:
        return []
    worse = f"{abs(one.drop):.2f} {unit} {'better' if one.drop < 0 else 'worse'}"
    line = f"{worse} than before it was quantized (standard error {one.stderr:.2f}; outputs {one.difference:.1e} off)"
    return [Text(line)]


def _drop_line(scores: Scores) -> str:
    allowed = "" if scores.allowed is None else f", {scores.allowed:g} {scores.unit} allowed"
    return f"{scores.in_words} (standard error {scores.stderr:.2f}{allowed})"


def cost_table(rows: Sequence[CostChange]) -> RenderableType | None:
    """Operations, weights and memory, dense beside compressed; nothing where nothing has changed."""
    if not rows or all(row.dense == row.compressed for row in rows):
        return None
    made = table("", "dense", "compressed", "left")
    for row in rows:
        made.add_row(f"FLOPs, {row.workload}", *_counts(row.dense.flops, row.compressed.flops, human_count))
    first = rows[0]
    made.add_row("weights", *_counts(first.dense.parameters, first.compressed.parameters, "{:,}".format))
    for row in rows:
        made.add_row(f"memory, {row.workload}", *_counts(row.dense.peak_bytes, row.compressed.peak_bytes, human_bytes))
    return made


def _counts(dense: int, own: int, form: Callable[[int], str]) -> tuple[str, str, str]:
    return form(dense).strip(), form(own).strip(), f"{own / max(dense, 1):.0%}"


def latencies(rows: Sequence[Comparison], timed_on: str) -> Table | None:
    """Dense beside the artifact, and what else was timed beside both; nothing where nothing was."""
    if not rows:
        return None
    made = table(f"ms, {timed_on}", "dense p50 (p90)", "artifact p50 (p90)", "ratio (quartiles)", "n")
    beside = {name: title for name, title in BESIDE.items() if name in rows[0].latency}
    for title in beside.values():
        made.add_column(title, justify="right")
    for row in rows:
        dense, own = row.latency["dense"], row.latency["artifact"]
        low, high = row.spread["artifact"]
        made.add_row(
            row.workload,
            milliseconds(dense),
            milliseconds(own),
            f"{row.ratio['artifact']:.2f}x ({low:.2f}-{high:.2f})",
            str(own.n),
            *(milliseconds(row.latency[name]) for name in beside),
        )
    return made


def milliseconds(latency: Latency) -> str:
    return f"{latency.p50:.2f} ({latency.p90:.2f})"


def size_line(report: Report) -> Text:
    sizes = report.sizes
    return Text(
        f"files {human_bytes(sizes.artifact_bytes)} (dense {human_bytes(sizes.dense_bytes)}); "
        f"{sizes.nonzero:,} of {sizes.parameters:,} weights are not zero (dense {sizes.dense_nonzero:,})"
    )
