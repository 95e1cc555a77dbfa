"""What a report shows besides figures is read from the written file and said by the models themselves."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.proof.exhibits import Exhibits
from compressor.proof.gathering import COLUMNS, ROWS, Gallery, texture, traffic
from compressor.proof.report import SiteRecord
from compressor.proof.roofs import measure_roofs
from compressor.source import Answer, Showcase, Stored


def site(name: str, status: str = "changed", asked: str = "2:4") -> SiteRecord:
    return SiteRecord(name, "linear.default", (2, 4), 1, status, asked=asked)


def held(*rows: list[float]) -> Stored:
    return Stored(torch.tensor(rows), "MatMul axis 0")


class Talker:
    """A source with two samples, or with none."""

    def __init__(self, showcase: Showcase | None):
        self._showcase = showcase

    def showcase(self) -> Showcase | None:
        return self._showcase


def gallery(showcase: Showcase | None) -> Gallery:
    return Gallery(Talker(showcase), lambda feeds: {"says": torch.tensor(1)})  # type: ignore[arg-type]


ASKED = Showcase("text", ("a", "b"), ("x", "y"), lambda run: [Answer(f"{q} {run({})['says']}") for q in ("a", "b")])


# *** samples ***


def test_both_models_are_asked_the_same():
    found = gallery(ASKED).exhibits(lambda feeds: {"says": torch.tensor(2)}, (), {}, {})
    assert [(one.question, one.wanted, one.dense.text, one.artifact.text) for one in found.samples] == [
        ("a", "x", "a 1", "a 2"), ("b", "y", "b 1", "b 2"),
    ]  # fmt: skip


def test_where_nothing_runs_the_artifact_or_there_are_no_samples_none_are_shown():
    assert gallery(ASKED).exhibits(None, (), {}, {}) == Exhibits()
    assert gallery(None).exhibits(lambda feeds: {}, (), {}, {}) == Exhibits()


# *** the texture ***


def test_the_texture_spells_sign_and_size_and_zeros():
    found = texture([site("w")], {"w": held([0.9, 0.0, -0.9, 0.0], [0.0, 0.05, 0.0, -0.45])})
    assert (found.site, found.pattern, found.rows) == ("w", "2:4", ("9.i.", ".1.e"))


def test_the_texture_is_of_a_weight_with_an_nm_pattern_if_there_is_one():
    stored = {name: held([1.0, 0.0, 0.0, 0.0]) for name in ("a", "b", "c")}
    sites = [site("a", "left"), site("b", asked="0.75"), site("c"), site("missing")]
    assert texture(sites, stored).site == "c"
    assert texture(sites[:2], stored).site == "b"
    assert texture(sites[:1], stored) is None
    assert texture([site("a", asked="")], stored) is None, "codes, or fewer channels, but no zeros"


def test_of_a_convolution_each_position_of_the_kernel_is_a_row_and_a_large_one_is_cut():
    stored = {"w": Stored(torch.ones(40, 3, 3, 100), "Conv axis 1")}
    rows = texture([site("w")], stored).rows
    assert (len(rows), {len(row) for row in rows}) == (ROWS, {COLUMNS})


@given(st.lists(st.lists(st.floats(-1e30, 1e30), min_size=4, max_size=4), min_size=1, max_size=6))
def test_a_character_is_a_dot_exactly_where_the_weight_is_zero(values):
    W = torch.tensor(values, dtype=torch.float64)
    rows = texture([site("w")], {"w": Stored(W, "")}).rows
    assert [[character == "." for character in row] for row in rows] == (W == 0).tolist()
    assert [[character in "abcdefghi" for character in row] for row in rows] == (W < 0).tolist()


# *** the roofs ***


def test_roofs_are_measured_once_and_only_where_something_is_timed():
    call = {"call": {"x": torch.zeros(3)}}
    found = gallery(None).exhibits(lambda feeds: {"y": feeds["x"].double()}, (), {}, call)
    assert found.roofs is measure_roofs()
    assert found.traffic == {"call": 3 * 4 + 3 * 8}
    assert gallery(None).exhibits(lambda feeds: {}, (), {}, {}).roofs is None
    assert traffic(lambda feeds: {}, {}) == {}


def test_the_roofs_are_those_of_a_processor_and_the_threads_stay_as_they_were():
    threads = torch.get_num_threads()
    roofs = measure_roofs.__wrapped__()
    assert torch.get_num_threads() == threads
    assert 1e8 < roofs.flops < 1e13
    assert 1e8 < roofs.bandwidth < 1e13
