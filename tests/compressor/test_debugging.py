"""COMPRESS_DEBUG shows more with each level, and changes nothing."""

import pytest
from torch import nn

from compressor import debugging
from compressor.pipeline import Context, Outcome, Row, run_pipeline, show_changes
from tests.compressor.tiny import graph_of, normal


class Cut:
    """Sets the first site to zero."""

    name = "cut"

    def run(self, graph, context):
        first, second = graph.sites[:2]
        first.weight.data.zero_()
        return Outcome((Row(first.name, "changed"), Row(second.name, "left", "it is the head")))

    def ensures(self, graph, outcome):
        pass


@pytest.mark.parametrize(("text", "level"), [("", 0), ("0", 0), ("1", 1), ("3", 3), (" 2 ", 2), ("yes", 1)])
def test_a_level_is_a_number_and_any_word_is_the_first(monkeypatch, text, level):
    monkeypatch.setenv("COMPRESS_DEBUG", text)
    assert debugging.level() == level


@pytest.mark.parametrize(
    ("level", "seen", "unseen"),
    [
        ("", [], ["cut", "head", "+#"]),
        ("1", ["1 changed, 1 left, 0 refused"], ["it is the head", "zeros=100.0%"]),
        ("2", ["1 changed", ": it is the head"], ["zeros=100.0%"]),
        ("3", ["1 changed", ": it is the head", "after cut:", "zeros=100.0%"], []),
    ],
)
def test_each_level_shows_what_the_one_before_does_and_more(monkeypatch, capsys, level, seen, unseen):
    monkeypatch.setenv("COMPRESS_DEBUG", level)
    monkeypatch.setattr("compressor.pipeline.format_pass", lambda one: one.name)
    graph = graph_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), normal(3, 4))
    run_pipeline(graph, [Cut()], Context(), [show_changes()])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(text in captured.err for text in seen)
    assert not any(text in captured.err for text in unseen)
