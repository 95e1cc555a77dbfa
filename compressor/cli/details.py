"""What --verbose adds below the tables: settings, versions, seconds, and each single thing where a table has kinds."""

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from compressor.cli.cache_view import CacheView
from compressor.commands.building import Built
from compressor.commands.weighing import Weighing
from compressor.layout import facts, in_words, table
from compressor.page import Page
from compressor.proof.report import Report
from compressor.units import human_bytes, human_seconds


def show_run(report: Report, console: Console) -> None:
    """The recipe as it was run, what each stage took, and the versions that took part."""
    made = facts()
    made.add_row("recipe", Text(report.recipe))
    made.add_row("took", took(report.seconds))
    made.add_row("versions", in_words(report.environment))
    console.print()
    console.print(made)


def took(seconds: Mapping[str, float]) -> str:
    """The sum, then each stage."""
    stages = "; ".join(f"{name} {one:.1f} s" for name, one in seconds.items())
    return f"{human_seconds(sum(seconds.values()))}: {stages}"


def show_curves(found: Weighing, console: Console) -> None:
    """What each weight costs at every share that was measured, below one line about it."""
    console.print()
    console.print(Text(_in_columns([f"{share:.0%}" for share in found.sites[0].shares]), style="bold"))
    for one in found.sites:
        console.print(Text(f"{one.site}: {one.size:,} weights, given {one.pattern}, which costs {one.loss:.2e}"))
        console.print(Text(_in_columns([f"{loss:.1e}" for loss in one.losses])))


def _in_columns(cells: list[str]) -> str:
    return "".join(f"{cell:>9}" for cell in cells)


def show_layers(built: Built, console: Console) -> None:
    """What finishes the job, what became of sparsity, and the kernel of each layer of the engine."""
    made = facts()
    made.add_row("sparsity", built.engine.summary())
    if built.engine.command:
        made.add_row("to finish", built.engine.command)
    console.print()
    console.print(made)
    if not built.engine.layers:
        console.print("the engine does not list its layers here")
        return
    rows = table("layer", "weight", "kernel")
    for layer in built.engine.layers:
        rows.add_row(layer.name, layer.site, f"{'sparse ' if layer.is_sparse else ''}{layer.tactic}")
    console.print(rows)


def show_contents(page: Page, console: Console) -> None:
    """What stands on a page."""
    made = facts()
    made.add_row("made from", f"{page.source}, of {page.weights} weights and {page.samples} samples shown")
    made.add_row("plots", "; ".join(page.plots) or "none")
    console.print(made)


def show_entries(found: CacheView, console: Console) -> None:
    """One row for each entry, the last used first."""
    rows = table("what", "kind", "size", "last used")
    for one in found.entries:
        rows.add_row(one.what, one.kind, human_bytes(one.bytes), one.used)
    console.print()
    console.print(rows if found.entries else "nothing is kept")
