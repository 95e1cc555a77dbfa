"""Which lengths an engine is built for: as asked, else around what is timed, and always consistent."""

import pytest
import torch

from compressor.errors import RecipeError
from compressor.shapes import choose_shapes, parse_shapes, usual_feeds
from tests.compressor.tiny import Compute, graph_of, normal
from tests.trained import WINDOW, lowered


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch=1:8:32", {"batch": (1, 8, 32)}),
        ("batch = 2 : 8 : 8", {"batch": (2, 8, 8)}),
        ("batch=8", {"batch": (1, 8, 8)}),
        ("past_sequence=0:0:64", {"past_sequence": (0, 0, 64)}),
        ("past_sequence=64", {"past_sequence": (0, 64, 64)}),
    ],
)
def test_reads_lengths(text, expected):
    assert parse_shapes([text]) == expected


@pytest.mark.parametrize(
    "text", ["batch", "batch=", "batch=8:1:32", "batch=0", "batch=1:2", "=3", "batch=-1", "batch=x"]
)
def test_refuses_what_is_no_length(text):
    with pytest.raises(RecipeError, match="a shape cannot be") as refused:
        parse_shapes([text])
    assert "batch=1:8:32" in str(refused.value)


def chosen(**asked: str):
    source, graph = lowered("tiny-gpt2")
    shapes = parse_shapes(f"{name}={text}" for name, text in asked.items())
    return choose_shapes(graph, source.workloads(), WINDOW, shapes)


def test_chooses_lengths_around_what_is_timed_and_scored():
    assert chosen() == {
        "batch": (1, 1, 8), "sequence": (1, 32, 64), "past_sequence": (0, 0, 64), "total_sequence": (1, 32, 128),
    }  # fmt: skip


def test_takes_what_is_asked_and_adds_the_total_up():
    found = chosen(batch="1:16:16", sequence="1:64:64", past_sequence="0:32:32")
    assert (found["batch"], found["total_sequence"]) == ((1, 16, 16), (1, 96, 96))


def test_refuses_an_axis_that_the_model_does_not_have():
    with pytest.raises(RecipeError, match="no axis of this model is called 'sequenze'") as refused:
        chosen(sequenze="8")
    assert "batch, sequence" in str(refused.value)


def test_refuses_lengths_that_what_is_scored_does_not_fit():
    with pytest.raises(RecipeError, match="a scored window does not fit the shapes") as refused:
        chosen(sequence="1:32:32")
    assert "sequence 64, where 1 to 32 is asked for" in str(refused.value)
    with pytest.raises(RecipeError, match="decode at 32 does not fit"):
        chosen(past_sequence="0:0:16")
    assert chosen(sequence="1:32:64")["sequence"] == (1, 32, 64)


def test_repeats_and_cuts_inputs_to_their_usual_lengths():
    graph = graph_of(
        Compute(lambda self, x: x + self.w, w=normal(3)), normal(2, 5, 3), dynamic=[{0: "batch", 1: "time"}]
    )
    x = torch.arange(30.0).reshape(2, 5, 3)
    found = usual_feeds(graph, {"x0": x}, {"batch": (1, 3, 8), "time": (1, 4, 8)})["x0"]
    assert found.shape == (3, 4, 3)
    assert (found[2] == x[0, :4]).all()
    empty = usual_feeds(graph, {"x0": x[:, :0]}, {"batch": (1, 3, 8), "time": (0, 4, 8)})["x0"]
    assert (empty == torch.zeros(3, 4, 3)).all()
