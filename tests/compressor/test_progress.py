import io
import re

import pytest
from rich.console import Console

from compressor import progress
from compressor.progress import Log, Quiet, Terminal, choose


@pytest.fixture
def shown(monkeypatch) -> io.StringIO:
    """What a terminal would show."""
    text = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda stderr: Console(file=text, force_terminal=True, width=80))
    return text


@pytest.mark.parametrize(
    ("watched", "quiet", "kind"), [(True, False, Terminal), (True, True, Quiet), (False, False, Quiet)]
)
def test_a_bar_is_for_a_person_who_watches(monkeypatch, watched, quiet, kind):
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: watched)
    assert type(choose(quiet)) is kind


def test_a_bar_counts_its_steps_and_goes_when_the_task_ends(shown):
    with Terminal().task("calibrating", total=3) as step:
        step()
        step()
    assert "calibrating" in shown.getvalue()
    assert "2/3" in shown.getvalue()
    assert shown.getvalue().endswith("\x1b[2K")  # the line is erased


def test_what_is_said_with_a_step_stands_beside_the_bar(shown):
    with Terminal().task("recovering", total=2) as step:
        step("loss 3.21")
        step()
    assert "recovering loss 3.21" in shown.getvalue()


def test_a_pattern_in_brackets_is_text_and_no_markup(shown):
    Terminal().say("sparsify [2:4] [bold]")
    assert "sparsify [2:4] [bold]" in shown.getvalue()


def test_silence_is_silent(capfd):
    with Quiet().task("calibrating", total=1) as step:
        step()
        step("loss 3.21")
    Quiet().say("anything")
    assert capfd.readouterr() == ("", "")


def test_who_asks_for_more_gets_a_line_for_each_step_with_seconds(monkeypatch, capfd):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    shown = choose(verbose=True)
    shown.say("capture the graph")
    with shown.task("calibrating", total=2) as step:
        step()
        step("loss 3.21")
    out, err = capfd.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert re.fullmatch(r" +\d+\.\d s  capture the graph", first)
    assert re.fullmatch(r" +\d+\.\d s  calibrating: 2 steps in \d+\.\d s", second)


def test_lines_stand_above_the_bar_in_a_terminal(shown):
    with Log(Terminal()).task("calibrating", total=1) as step:
        step()
    assert "1/1" in shown.getvalue()
    assert "calibrating: 1 step in 0." in shown.getvalue()


def test_quiet_wins_over_verbose():
    assert choose(quiet=True, verbose=True) is progress.QUIET
