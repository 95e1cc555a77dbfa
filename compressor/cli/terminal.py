"""What a person reads in a terminal: a report, a plan, an inspection, as tables at 80 columns."""

from rich.console import Console, Group, RenderableType
from rich.text import Text

from compressor.cli.cache_view import CacheView
from compressor.cli.channel_view import show_channels
from compressor.cli.details import show_contents, show_curves, show_entries, show_layers, show_run
from compressor.cli.listing import Names
from compressor.cli.sites import MARK, kind, site_table
from compressor.cli.verdicts import cost_table, latencies, milliseconds, promise_table, score_table, size_line, word_of
from compressor.commands.building import Bench, Built
from compressor.commands.checking import Check
from compressor.commands.inspection import Inspection
from compressor.commands.planning import Plan
from compressor.commands.weighing import Weighing
from compressor.engine import Verdict
from compressor.layout import facts, in_words, table
from compressor.page import Page
from compressor.pipeline import SiteLoss
from compressor.proof.report import Report
from compressor.units import human_bytes, human_count, human_seconds


def show_report(report: Report, console: Console, verbose: bool = False) -> None:
    """The verdict first, then what it rests on."""
    console.print(_verdict(report))
    sites, times = site_table(report.sites, verbose), latencies(report.latency, report.timed_on)
    for part in (score_table(report), sites, cost_table(report.costs), times, size_line(report)):
        if part is not None:
            console.print()
            console.print(part)
    for text in (*report.notes, report.gain):
        if text:
            console.print()
            console.print(Text(text, style="dim"))
    if verbose:
        show_run(report, console)


def _verdict(report: Report) -> RenderableType:
    word, style = word_of(bool(report))
    runtime = f"  {report.backend} {report.dtype}"
    title = Text.assemble((word, style), f"  {report.model} -> {report.output}/", (runtime, "dim"))
    return Group(title, promise_table(report.promises))


def show_page(page: Page, console: Console, verbose: bool = False) -> None:
    word, style = word_of(page.is_met)
    console.print(Text.assemble((word, style), f"  {page.model}: {page.path}", (f"  {human_bytes(page.bytes)}", "dim")))
    if verbose:
        console.print(promise_table(page.promises))
        show_contents(page, console)


def show_plan(plan: Plan, console: Console, verbose: bool = False) -> None:
    """What would happen, what it would take, and what it would bring."""
    console.print(Text(f"{plan.model}: {plan.origin}", style="bold"))
    console.print(Text(plan.recipe, style="dim"))
    console.print()
    console.print(site_table(plan.sites, verbose))
    console.print()
    made = facts()
    share = f"{plan.share_changed:.0%} of their parameters"
    made.add_row("changed", f"{plan.n_changed} of {len(plan.sites)} weights, {share}")
    if plan.cost is not None:
        made.add_row("memory", f"about {human_bytes(plan.cost.memory)}")
        made.add_row("time", f"about {human_seconds(plan.cost.seconds)} for calibration and solving, on this machine")
    if plan.training:
        made.add_row("training", plan.training)
    made.add_row("calibration", plan.calibration)
    made.add_row("scored on", plan.evaluation)
    made.add_row(plan.backend, plan.gain)
    console.print(made)


def show_weighing(found: Weighing, console: Console, verbose: bool = False) -> None:
    """The curve of each site, what the recipe gives it, and what that costs."""
    console.print(Text(f"{found.model}: {found.origin}", style="bold"))
    console.print(Text(found.recipe, style="dim"))
    shares = found.sites[0].shares
    shown = [at for at, share in enumerate(shares) if share in (0.5, 0.7, 0.9)]
    made = table("weight", *(f"{shares[at]:.0%}" for at in shown), "given", "cost")
    for one in found.sites:
        curve = (f"{one.losses[at]:.1e}" for at in shown)
        made.add_row(one.site.removesuffix(".weight"), *curve, _given(one), f"{one.loss:.1e}")
    console.print(made)
    console.print(f"costs: {found.unit} from the dense model, each weight alone; by {found.calibration}")
    if verbose:
        show_curves(found, console)


def _given(one: SiteLoss) -> str:
    return one.pattern if ":" in one.pattern or one.pattern == "dense" else f"{float(one.pattern):.0%}"


def show_inspection(found: Inspection, console: Console, verbose: bool = False) -> None:
    console.print(Text(f"{found.name}: {found.origin}", style="bold"))
    console.print(site_table(found.sites, verbose))
    console.print(f"{found.parameters:,} weights, {found.zeros / max(found.parameters, 1):.1%} of them zero")
    for name, one in found.costs.items():
        held = f"{human_bytes(one.parameter_bytes)} of weights, {human_bytes(one.activation_bytes)} of values"
        console.print(f"{name}: {human_count(one.flops)}FLOPs, at most {held} at once")
    if found.channels:
        show_channels(found.channels, found.blocks, console, verbose)


def show_names(found: Names, console: Console, verbose: bool = False) -> None:
    groups = {"models": found.models, "passes": found.passes, "backends": found.backends}
    if verbose:
        groups |= {f"options of {name}": rows for name, rows in found.options.items()}
    for title, rows in groups.items():
        console.print(Text(title, style="bold"))
        made = facts()
        for name, text in rows.items():
            made.add_row(f"  {name}", Text(text))  # not a str, whose [brackets] rich would take for styles
        console.print(made)


def show_check(found: Check, console: Console, verbose: bool = False) -> None:
    """The verdict, then one row per weight, or per kind of weight."""
    mark, color = MARK[bool(found)]
    console.print(Text.assemble((f"{mark} ", color), (f"{found.name} for {found.backend}: {found.summary()}", "bold")))
    groups: dict[tuple[str, ...], list[Verdict]] = {}
    for one in found.verdicts:
        name = one.site if verbose else kind(one.site)
        shape = "x".join(map(str, one.shape))
        row = (name, shape, one.op, str(one.axis), one.dtype, f"{one.zeros:.0%}", one.word)
        groups.setdefault(row, []).append(one)
    made = table("weight", "shape", "op", "axis", "dtype", "zeros", "kernels")
    notes: dict[str, list[str]] = {}
    for (name, *cells), members in groups.items():
        label = f"{name} ({len(members)})" if len(members) > 1 else members[0].site
        made.add_row(label, *cells)
        for detail in dict.fromkeys(one.detail for one in members if one.detail):
            notes.setdefault(detail, []).append(label)
    console.print(made)
    for detail, labels in notes.items():
        console.print(f"{', '.join(labels)}: {detail}")


def show_built(built: Built, console: Console, verbose: bool = False) -> None:
    """What a host with the device has made of an artifact."""
    word, style = word_of(bool(built))
    console.print(Text.assemble((word, style), f"  {built.name}/", (f"  {built.engine.runtime}", "dim")))
    console.print(promise_table(built.promises))
    if built.engine.is_built:
        console.print(f"engine {human_bytes(built.engine.bytes)}, built in {human_seconds(built.engine.seconds)}")
    if built.latency:
        console.print(latencies(built.latency, f"{built.engine.runtime}, GPU"))
    if verbose:
        show_layers(built, console)


def show_bench(found: Bench, console: Console, verbose: bool = False) -> None:
    console.print(Text(f"{found.name} for {found.runtime}", style="bold"))
    names = list(dict.fromkeys(name for row in found.latency for name in row.latency))
    made = table("ms, p50 (p90)", *names, "n")
    for row in found.latency:
        cells = [milliseconds(row.latency[name]) if name in row.latency else "" for name in names]
        made.add_row(row.workload, *cells, "/".join(str(row.latency[name].n) for name in row.latency))
    console.print(made)
    if found.missing:
        console.print(f"not timed: {found.missing}")
    if verbose:
        console.print(f"versions: {in_words(found.environment)}")


def show_cache(found: CacheView, console: Console, verbose: bool = False) -> None:
    """Where it is, how full, and what is in it."""
    rows = table("kept", "entries", "size", "last used")
    for one in found.kinds:
        rows.add_row(one.name, str(one.entries), human_bytes(one.bytes), one.used)
    console.print(Text(found.folder, style="bold"))
    if found.removed is not None:
        console.print(f"removed {found.removed} entr{'y' if found.removed == 1 else 'ies'}")
    if found.kinds:
        console.print(rows)
    console.print(f"{human_bytes(found.bytes)} of {human_bytes(found.limit)}")
    if verbose:
        show_entries(found, console)
