"""A benchmark as tables of 80 columns."""

from rich.console import Console
from rich.text import Text

from compressor.commands.benching.contestant import RUNTIME
from compressor.commands.benching.run import Bench
from compressor.layout import facts, in_words, table
from compressor.units import human_bytes


def show_bench(found: Bench, console: Console, verbose: bool = False) -> None:
    """Times, each model below the other; then what each takes."""
    threads = f"{found.settings.threads} thread{'s' * (found.settings.threads > 1)}"
    times = table(f"ms in {RUNTIME}, {threads}", "model", "p50", "p90", "n", "faster (quartiles)")
    for row in found.latency:
        reference = next(iter(row.latency))
        for name, one in row.latency.items():
            low, high = row.spread[name]
            faster = "" if name == reference else f"{row.ratio[name]:.2f}x ({low:.2f}-{high:.2f})"
            label = row.workload if name == reference else ""
            times.add_row(label, name, f"{one.p50:.2f}", f"{one.p90:.2f}", str(one.n), faster)
    console.print(times)
    console.print()
    has_tokens = any(entry.tokens_per_second for entry in found.entries)
    sizes = table("model", "what", "file", "memory", *(["tokens/s"] if has_tokens else []))
    for entry in found.entries:
        held = "failed" if entry.memory is None else human_bytes(entry.memory)
        rate = [f"{entry.tokens_per_second:.0f}" if entry.tokens_per_second else ""] if has_tokens else []
        sizes.add_row(entry.name, entry.what, human_bytes(entry.file_bytes), held, *rate)
    console.print(sizes)
    console.print(Text("memory: what opening and one use add to the peak of a fresh process", style="dim"))
    for line in found.missing:
        console.print(f"not timed: {line}")
    if verbose:
        _show_conditions(found, console)


def _show_conditions(found: Bench, console: Console) -> None:
    """What else it takes to repeat it."""
    one, made = found.settings, facts()
    made.add_row("timed", f"about {one.seconds:g} s each, in turn, on {one.threads} thread{'s' * (one.threads > 1)}")
    if any(entry.tokens_per_second for entry in found.entries):
        made.add_row("prompt", f"{one.prompt} tokens drawn by one seed, then {one.new} new ones")
    else:
        sizes = "".join(f", {symbol} {length}" for symbol, length in (one.sizes or {}).items())
        made.add_row("inputs", f"drawn by one seed, in batches of {' and '.join(map(str, one.batches))}{sizes}")
    for entry in found.entries:
        made.add_row(entry.name, f"{entry.what}: {entry.file_bytes:,} bytes")
    made.add_row("versions", in_words(found.environment))
    console.print()
    console.print(made)
