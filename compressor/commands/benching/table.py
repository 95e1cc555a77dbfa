"""A benchmark as tables of 80 columns."""

from rich.console import Console
from rich.text import Text

from compressor.commands.benching.contestant import RUNTIME
from compressor.commands.benching.run import Bench
from compressor.layout import table
from compressor.units import human_bytes


def show_bench(found: Bench, console: Console) -> None:
    """Times, each model below the other; then what each takes."""
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}"
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
