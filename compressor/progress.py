"""Progress of long work: a bar in a terminal, silence in a pipe."""

import sys
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


def choose(quiet: bool = False) -> Progress:
    """A bar when a person is watching standard error, else silence."""
    return Terminal() if sys.stderr.isatty() and not quiet else QUIET
