"""A sweep as a table in a terminal of 80 columns."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from compressor.commands.sweeping.pareto import COSTS, front
from compressor.commands.sweeping.point import Point
from compressor.commands.sweeping.run import PAGE, Sweep
from compressor.layout import facts, table
from compressor.units import human_bytes, human_seconds


def show_sweep(found: Sweep, console: Console, verbose: bool = False) -> None:
    """One row per point, the dense model first; then what failed, and where the page is."""
    points = (found.dense, *found.points)
    names = list(dict.fromkeys(name for point in points for name in point.varied))
    best = front(points, COSTS["non-zero weights"])
    console.print(Text(f"{found.model}: {found.dense.facts.get('origin', '')}", style="bold"))
    rows = table(*names, found.dense.metric or "score", "worse", *_speed_titles(points), "zipped", "non-zero", "")
    for point in points:
        cells = [point.varied.get(name, "") for name in names]
        cells[0] = cells[0] if point.varied else "dense"
        rows.add_row(*cells, *_figures(point, points), "best" if point in best else "")
    console.print(rows)
    for point in points:
        for line in (point.failed, *point.unmet):
            if line:
                console.print(Text.assemble((f"{point.name}: ", "bold red"), line))
    console.print(Text(_footing(found), style="dim"))
    if verbose:
        for point in points:
            _show_point(point, console)


def _show_point(point: Point, console: Console) -> None:
    """What the table has no room for."""
    made = facts()
    made.add_row("recipe", Text(point.recipe))
    if point.is_scored:
        loss = "" if point.loss is None else f"; loss {point.loss:.4f}"
        made.add_row("score", f"{point.metric} {point.value:.3f} of {point.n}, standard error {point.stderr:.3f}{loss}")
    if not point.failed:
        made.add_row("size", f"{point.bytes:,} bytes; {point.nonzero:,} of {point.parameters:,} weights are not zero")
    for one in point.speeds:
        own, dense = f"{one.p50:.2f} ({one.p90:.2f})", f"{one.dense_p50:.2f} ({one.dense_p90:.2f})"
        made.add_row(
            one.workload, f"{own} ms, dense {dense}, n {one.n}: {one.ratio:.2f}x ({one.low:.2f}-{one.high:.2f})"
        )
    if point.seconds:
        made.add_row("made in", human_seconds(point.seconds))
    console.print()
    console.print(Text(point.name, style="bold"))
    console.print(made)


def _speed_titles(points: Sequence[Point]) -> list[str]:
    """How much faster than dense the first workload is; for language models tokens per second beside it."""
    timed = next((point for point in points if point.speeds), None)
    if timed is None:
        return []
    return ["faster", *(["tokens/s"] if timed.tokens_per_second else [])]


def _figures(point: Point, points: Sequence[Point]) -> list[str]:
    if point.failed:
        return ["failed", "", *("" for _ in _speed_titles(points)), "", ""]
    score = f"{point.value:.2f} ±{point.stderr:.2f}" if point.is_scored else ""
    worse = (
        f"{point.drop:+.1f}{' ' if point.higher_is_better else '%'}" if point.varied and point.drop is not None else ""
    )
    speeds = [f"{point.speeds[0].ratio:.2f}x" if point.speeds and point.varied else ""]
    rate = point.rate(points[0])
    speeds.append(f"{rate:.0f}" if rate else "")
    speeds = speeds[: len(_speed_titles(points))]
    share = f"{point.nonzero / point.parameters:.1%}" if point.parameters else ""
    return [score, worse, *speeds, human_bytes(point.zipped), share]


def _footing(found: Sweep) -> str:
    facts, n = found.dense.facts, len(found.points) + 1
    again = f", {found.cached} of {n} points from the cache" if found.cached else ""
    workload = next((f" ({point.speeds[0].workload})" for point in found.points if point.speeds), "")
    rate = "tokens/s: the dense model's, times such a ratio\n" if found.dense.tokens_per_second else ""
    return (
        f"scored on {facts.get('scored on', 'nothing')}\n"
        f"faster: than a dense twin timed in turn, on {facts.get('timed on', '')}{workload}\n{rate}"
        "best: none of the others has as few non-zero weights and scores as well\n"
        f"{human_seconds(found.seconds)}{again}; plots in {found.output}/{PAGE}"
    )
