"""Progress of long work: a bar in a terminal, silence in a pipe; a line for each step where that is asked for."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Step(Protocol):
    """To be called after each step; note: what stands beside the bar from then on, unless it is empty."""

    def __call__(self, note: str = "") -> None: ...


class Progress(Protocol):
    """Where long work says how far it is."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Step]:
        """A context manager that gives a function to call after each of `total` steps; None when nobody knows."""

    def say(self, text: str) -> None:
        """One line about what happens now."""


class Quiet:
    """Says nothing."""

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Step]:
        yield lambda note="": None

    def say(self, text: str) -> None:
        return None


QUIET = Quiet()


class Terminal:
    """A bar with the time left, on standard error, gone when the task ends."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Step]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            # Without a total nobody knows how much is left.
            *((TextColumn("left"), TimeRemainingColumn()) if total else ()),
        )
        with Bar(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda note="": bar.update(task, advance=1, description=f"{label} {note}" if note else None)

    def say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)


class Log:
    """Every step as a line that begins with the seconds since the start, for those who asked for more.

    beside: what shows the same work as it goes on, bars in a terminal.
    """

    def __init__(self, beside: Progress = QUIET) -> None:
        self._beside, self._start = beside, time.perf_counter()

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Step]:
        start, done = time.perf_counter(), 0
        with self._beside.task(label, total) as step:

            def counted(note: str = "") -> None:
                nonlocal done
                done += 1
                step(note)

            yield counted
        self.say(f"{label}: {done} step{'s' * (done != 1)} in {time.perf_counter() - start:.1f} s")

    def say(self, text: str) -> None:
        line = f"{time.perf_counter() - self._start:7.1f} s  {text}"
        if isinstance(self._beside, Terminal):
            self._beside.say(line)
        else:
            print(line, file=sys.stderr, flush=True)


def choose(quiet: bool = False, verbose: bool = False) -> Progress:
    """A bar when a person is watching standard error, else silence; lines besides when asked for. Quiet wins."""
    if quiet:
        return QUIET
    bars = Terminal() if sys.stderr.isatty() else QUIET
    return Log(bars) if verbose else bars
