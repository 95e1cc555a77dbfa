"""What a person reads in a terminal: a report, a plan, an inspection, as tables at 80 columns."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from compressor.cli.cache_view import CacheView
from compressor.cli.channel_view import show_channels
from compressor.commands.building import Bench, Built
from compressor.commands.checking import Check
from compressor.commands.diffing import Diff, Half, WeightChange
from compressor.commands.generating import Generated
from compressor.commands.inspection import Inspection
from compressor.commands.planning import Plan
from compressor.commands.weighing import Weighing
from compressor.engine import Verdict
from compressor.layout import facts as _facts
from compressor.layout import table as _table
from compressor.page import Page
from compressor.pipeline import SiteLoss
from compressor.proof.costs import CostChange
from compressor.proof.latency import Comparison, Latency
from compressor.proof.report import Promise, Report, Scores, SiteRecord
from compressor.units import human_bytes, human_count, human_seconds

MARK = {True: ("yes", "green"), False: ("NO", "bold red")}


def show_report(report: Report, console: Console, verbose: bool = False) -> None:
    """The verdict first, then what it rests on."""
    console.print(_verdict(report))
    sites = _site_table(report.sites, verbose)
    for part in (_score_table(report), sites, _cost_table(report.costs), _latency_table(report), _size_line(report)):
        if part is not None:
            console.print()
            console.print(part)
    for text in (*report.notes, report.gain):
        if text:
            console.print()
            console.print(Text(text, style="dim"))


def show_page(page: Page, console: Console) -> None:
    word, style = _word(page.is_met)
    console.print(Text.assemble((word, style), f"  {page.model}: {page.path}", (f"  {human_bytes(page.bytes)}", "dim")))


class Talk:
    """Prints what models say while they say it."""

    def __init__(self, console: Console, prompt: str):
        self._console, self._prompt, self._by = console, prompt, ""

    def hear(self, by: str, piece: str) -> None:
        if by != self._by:
            self._console.print(Text.assemble("\n\n" if self._by else "", (by, "bold")))
            self._console.print(Text(self._prompt, style="dim"), end="", soft_wrap=True)
            self._by = by
        self._console.print(Text(piece), end="", soft_wrap=True)

    def end(self, said: Generated) -> None:
        """How fast each was, and how far they agree."""
        table = _facts()
        for one in said.said:
            rate = f", then {one.per_second:.0f} tokens per second" if one.per_second else ""
            text = f"{len(one.tokens)} tokens, the first after {one.first_ms:.0f} ms{rate}"
            table.add_row(one.by, f"{one.runtime}: {text}")
        if said.same is not None:
            least = min(len(one.tokens) for one in said.said)
            table.add_row("the same", f"the first {said.same} of {least} tokens")
        self._console.print("\n")
        self._console.print(table)


def show_plan(plan: Plan, console: Console, verbose: bool = False) -> None:
    """What would happen, what it would take, and what it would bring."""
    console.print(Text(f"{plan.model}: {plan.origin}", style="bold"))
    console.print(Text(plan.recipe, style="dim"))
    console.print()
    console.print(_site_table(plan.sites, verbose))
    console.print()
    facts = _facts()
    share = f"{plan.share_changed:.0%} of their parameters"
    facts.add_row("changed", f"{plan.n_changed} of {len(plan.sites)} weights, {share}")
    if plan.cost is not None:
        facts.add_row("memory", f"about {human_bytes(plan.cost.memory)}")
        facts.add_row("time", f"about {human_seconds(plan.cost.seconds)} for calibration and solving, on this machine")
    if plan.training:
        facts.add_row("training", plan.training)
    facts.add_row("calibration", plan.calibration)
    facts.add_row("scored on", plan.evaluation)
    facts.add_row(plan.backend, plan.gain)
    console.print(facts)


def show_weighing(found: Weighing, console: Console) -> None:
    """The curve of each site, what the recipe gives it, and what that costs."""
    console.print(Text(f"{found.model}: {found.origin}", style="bold"))
    console.print(Text(found.recipe, style="dim"))
    shares = found.sites[0].shares
    shown = [at for at, share in enumerate(shares) if share in (0.5, 0.7, 0.9)]
    table = _table("weight", *(f"{shares[at]:.0%}" for at in shown), "given", "cost")
    for one in found.sites:
        curve = (f"{one.losses[at]:.1e}" for at in shown)
        table.add_row(one.site.removesuffix(".weight"), *curve, _given(one), f"{one.loss:.1e}")
    console.print(table)
    console.print(f"costs: {found.unit} from the dense model, each weight alone; by {found.calibration}")


def _given(one: SiteLoss) -> str:
    return one.pattern if ":" in one.pattern or one.pattern == "dense" else f"{float(one.pattern):.0%}"


def show_inspection(found: Inspection, console: Console, verbose: bool = False) -> None:
    console.print(Text(f"{found.name}: {found.origin}", style="bold"))
    console.print(_site_table(found.sites, verbose))
    console.print(f"{found.parameters:,} weights, {found.zeros / max(found.parameters, 1):.1%} of them zero")
    for name, one in found.costs.items():
        held = f"{human_bytes(one.parameter_bytes)} of weights, {human_bytes(one.activation_bytes)} of values"
        console.print(f"{name}: {human_count(one.flops)}FLOPs, at most {held} at once")
    if found.channels:
        show_channels(found.channels, found.blocks, console, verbose)


def show_names(groups: dict[str, dict[str, str]], console: Console) -> None:
    for title, rows in groups.items():
        console.print(Text(title, style="bold"))
        table = _facts()
        for name, text in rows.items():
            table.add_row(f"  {name}", Text(text))  # not a str, whose [brackets] rich would take for styles
        console.print(table)


def show_check(found: Check, console: Console, verbose: bool = False) -> None:
    """The verdict, then one row per weight, or per kind of weight."""
    mark, color = MARK[bool(found)]
    console.print(Text.assemble((f"{mark} ", color), (f"{found.name} for {found.backend}: {found.summary()}", "bold")))
    groups: dict[tuple[str, ...], list[Verdict]] = {}
    for one in found.verdicts:
        name = one.site if verbose else _kind(one.site)
        shape = "x".join(map(str, one.shape))
        row = (name, shape, one.op, str(one.axis), one.dtype, f"{one.zeros:.0%}", one.word)
        groups.setdefault(row, []).append(one)
    table = _table("weight", "shape", "op", "axis", "dtype", "zeros", "kernels")
    notes: dict[str, list[str]] = {}
    for (name, *cells), members in groups.items():
        label = f"{name} ({len(members)})" if len(members) > 1 else members[0].site
        table.add_row(label, *cells)
        for detail in dict.fromkeys(one.detail for one in members if one.detail):
            notes.setdefault(detail, []).append(label)
    console.print(table)
    for detail, labels in notes.items():
        console.print(f"{', '.join(labels)}: {detail}")


def show_diff(found: Diff, console: Console, verbose: bool = False) -> None:
    """Operators, then one row per weight that differs, or per kind of weight."""
    console.print(Text.assemble(("the same" if found else "different", "bold"), f"  {found.before} and {found.after}"))
    if found.unlike:
        console.print(Text(found.unlike, style="dim"))
    if found.operators:
        table = _table("operators", "before", "after")
        for one in found.operators:
            table.add_row(one.op, str(one.before), str(one.after))
        console.print(table)
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
        name = one.name if verbose else _kind(one.name)
        cells = [_turned(*("" if half is None else text(half) for half in (one.before, one.after))) for text in _HALF]
        rows.setdefault((name, *cells), []).append(one)
    made = []
    for (name, *cells), members in rows.items():
        label = f"{name} ({len(members)})" if len(members) > 1 else members[0].name
        zeros = (_span([getattr(one, side) for one in members if getattr(one, side)], "zeros", "{:.0%}")
                 for side in ("before", "after"))  # fmt: skip
        made.append([label, *cells, _turned(*zeros), _span(members, "relative_difference", "{:.2%}")])
    return _filled(made, "weight", "shape", "type", "pattern", "zeros", "difference")


_HALF: tuple[Callable[[Half], str], ...] = (
    lambda half: "x".join(map(str, half.shape)),
    lambda half: half.dtype,
    lambda half: half.found or ("dense" if half.where else ""),
)


def _turned(before: str, after: str) -> str:
    """What it was and what it is, once where that is the same."""
    return before if before == after else f"{before or 'none'} > {after or 'none'}"


def show_built(built: Built, console: Console) -> None:
    """What a host with the device has made of an artifact."""
    word, style = _word(bool(built))
    console.print(Text.assemble((word, style), f"  {built.name}/", (f"  {built.engine.runtime}", "dim")))
    console.print(_promise_table(built.promises))
    if built.engine.is_built:
        console.print(f"engine {human_bytes(built.engine.bytes)}, built in {human_seconds(built.engine.seconds)}")
    if built.latency:
        console.print(_latencies(built.latency, f"{built.engine.runtime}, GPU"))


def show_bench(found: Bench, console: Console) -> None:
    console.print(Text(f"{found.name} for {found.runtime}", style="bold"))
    names = list(dict.fromkeys(name for row in found.latency for name in row.latency))
    table = _table("ms, p50 (p90)", *names, "n")
    for row in found.latency:
        cells = [_milliseconds(row.latency[name]) if name in row.latency else "" for name in names]
        table.add_row(row.workload, *cells, "/".join(str(row.latency[name].n) for name in row.latency))
    console.print(table)
    if found.missing:
        console.print(f"not timed: {found.missing}")


def show_cache(found: CacheView, console: Console) -> None:
    """Where it is, how full, and what is in it."""
    rows = _table("kept", "entries", "size", "last used")
    for kind in found.kinds:
        rows.add_row(kind.name, str(kind.entries), human_bytes(kind.bytes), kind.used)
    console.print(Text(found.folder, style="bold"))
    if found.removed is not None:
        console.print(f"removed {found.removed} entr{'y' if found.removed == 1 else 'ies'}")
    if found.kinds:
        console.print(rows)
    console.print(f"{human_bytes(found.bytes)} of {human_bytes(found.limit)}")


# *** parts of a report ***


def _verdict(report: Report) -> RenderableType:
    word, style = _word(bool(report))
    runtime = f"  {report.backend} {report.dtype}"
    title = Text.assemble((word, style), f"  {report.model} -> {report.output}/", (runtime, "dim"))
    return Group(title, _promise_table(report.promises))


def _word(is_met: bool) -> tuple[str, str]:
    """The verdict and its style."""
    return ("PASSED", "bold green") if is_met else ("NOT MET", "bold red")


def _promise_table(promises: Sequence[Promise]) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    for promise in promises:
        mark, color = MARK[promise.met]
        table.add_row(Text(f"  {mark:>3}", style=color), Text.assemble(promise.name, (f": {promise.detail}", "dim")))
    return table


def _score_table(report: Report) -> RenderableType:
    scores = report.scores
    if scores is None:
        return Text(f"Not scored: {report.unscored}")
    table = _table(scores.dense.metric, "", "standard error")
    for name in ("dense", "compressed", "artifact"):
        score = getattr(scores, name)
        where = "in torch" if name != "artifact" else f"in {report.ran_in or report.backend.split()[0]}"
        table.add_row(f"{name}, {where}", f"{score.value:.2f}", f"{score.stderr:.2f}")
    return Group(
        table,
        Text(_drop_line(scores)),
        Text(f"scored on {scores.samples}\ncalibrated on {report.calibration}", style="dim"),
    )


def _drop_line(scores: Scores) -> str:
    allowed = "" if scores.allowed is None else f", {scores.allowed:g} {scores.unit} allowed"
    return f"{scores.in_words} (standard error {scores.stderr:.2f}{allowed})"


def _cost_table(rows: Sequence[CostChange]) -> RenderableType | None:
    """Operations, weights and memory, dense beside compressed; nothing where nothing has changed."""
    if not rows or all(row.dense == row.compressed for row in rows):
        return None
    table = _table("", "dense", "compressed", "left")
    for row in rows:
        table.add_row(f"FLOPs, {row.workload}", *_counts(row.dense.flops, row.compressed.flops, human_count))
    first = rows[0]
    table.add_row("weights", *_counts(first.dense.parameters, first.compressed.parameters, "{:,}".format))
    for row in rows:
        table.add_row(f"memory, {row.workload}", *_counts(row.dense.peak_bytes, row.compressed.peak_bytes, human_bytes))
    return table


def _counts(dense: int, own: int, form: Callable[[int], str]) -> tuple[str, str, str]:
    return form(dense).strip(), form(own).strip(), f"{own / max(dense, 1):.0%}"


def _latency_table(report: Report) -> RenderableType | None:
    return _latencies(report.latency, report.timed_on) if report.latency else None


def _latencies(rows: Sequence[Comparison], timed_on: str) -> Table:
    """Dense beside the artifact; ONNX Runtime beside both where an engine was timed."""
    table = _table(f"ms, {timed_on}", "dense p50 (p90)", "artifact p50 (p90)", "ratio (quartiles)", "n")
    beside = [row.latency["onnxruntime"] for row in rows if "onnxruntime" in row.latency]
    if beside:
        table.add_column("onnxruntime, CPU", justify="right")
    for row in rows:
        dense, own = row.latency["dense"], row.latency["artifact"]
        low, high = row.spread["artifact"]
        table.add_row(
            row.workload,
            _milliseconds(dense),
            _milliseconds(own),
            f"{row.ratio['artifact']:.2f}x ({low:.2f}-{high:.2f})",
            str(own.n),
            *([_milliseconds(row.latency["onnxruntime"])] if beside else []),
        )
    return table


def _milliseconds(latency: Latency) -> str:
    return f"{latency.p50:.2f} ({latency.p90:.2f})"


def _size_line(report: Report) -> Text:
    sizes = report.sizes
    return Text(
        f"files {human_bytes(sizes.artifact_bytes)} (dense {human_bytes(sizes.dense_bytes)}); "
        f"{sizes.nonzero:,} of {sizes.parameters:,} weights are not zero (dense {sizes.dense_nonzero:,})"
    )


# *** sites ***


def _site_table(sites: Sequence[SiteRecord], verbose: bool) -> RenderableType:
    """One row per site, or per kind of site: `transformer.h.*.mlp.c_fc.weight (4)`."""
    rows: list[list[Any]] = []
    notes: dict[tuple[str, str], list[str]] = {}
    for name, members in _groups(sites, verbose):
        first = members[0]
        label = f"{name} ({len(members)})" if len(members) > 1 else name
        rows.append([
            label, _by(first.shape), _by(first.dense_shape or ()), "" if first.axis < 0 else str(first.axis),
            _pattern_cell(first),
            _span(members, "sparsity", "{:.0%}"), _span(members, "relative_error", "{:.1%}"), _sparse_cell(first),
            first.dtype if first.dtype.startswith("int") else "", _span(members, "rounding_error", "{:.2%}"),
        ])  # fmt: skip
        if first.reason:
            notes.setdefault((first.status, first.reason), []).append(label)
    lines = [
        Text.assemble(("refused: ", "bold red") if status == "refused" else "", f"{', '.join(names)}: {reason}")
        for (status, reason), names in notes.items()
    ]
    return Group(
        _filled(rows, "weight", "shape", "was", "axis", "pattern", "zeros", "error", "kernels", "type", "rounding"),
        *lines,
    )


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _filled(rows: Sequence[Sequence[Any]], *titles: str) -> Table:
    """A table of the columns that say something in at least one row."""
    used = [at for at in range(len(titles)) if any(str(row[at]) for row in rows)]
    table = _table(*(titles[at] for at in used))
    for row in rows:
        table.add_row(*(row[at] for at in used))
    return table


def _groups(sites: Sequence[SiteRecord], verbose: bool) -> list[tuple[str, list[SiteRecord]]]:
    groups: dict[Any, list[SiteRecord]] = {}
    for site in sites:
        name = site.name if verbose else _kind(site.name)
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


def _kind(name: str) -> str:
    """The name of what is like it: layer numbers as stars."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name.removesuffix(".weight"))


def _shown(site: SiteRecord, verbose: bool) -> str:
    return site.name if verbose else site.name.removesuffix(".weight")


def _pattern_cell(site: SiteRecord) -> Text:
    if site.holds is not None:
        mark, color = MARK[site.holds]
        return Text.assemble(site.asked or "smaller", " ", (mark, color))
    if site.status == "changed":
        return Text(site.asked or ("smaller" if site.shape else "gone"))
    return Text(site.found or ("refused" if site.status == "refused" else "dense"), style="dim")


def _sparse_cell(site: SiteRecord) -> str:
    """Whether sparse kernels can take it, and once an engine has told, which kind it got."""
    word = re.split("[:;]", site.verdict, maxsplit=1)[0]
    return f"{word}, {site.kernel.split()[0]}" if site.kernel else word


def _span(members: Iterable[Any], field: str, form: str) -> str:
    values = [value for value in (getattr(site, field) for site in members) if value is not None]
    if not values:
        return ""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low}-{high}"
