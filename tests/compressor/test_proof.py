"""What the proof accepts, and each way in which a written file may break its word."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from compressor.graph import Graph
from compressor.models.task import perplexity
from compressor.pipeline import Row
from compressor.progress import QUIET
from compressor.proof.parity import Parity
from compressor.proof.proving import (
    cast,
    most_nonzero,
    observed_pattern,
    promises,
    prove_parity,
    site_records,
    time_beside_dense,
)  # fmt: skip
from compressor.proof.report import Scores, SiteRecord, score_drop
from compressor.source import Stored
from tests.compressor.tiny import Compute, graph_of, normal

EXACT = Parity(0.0, 1e-4, ("example",))


def two_of_four(m: int, d: int) -> Tensor:
    return normal(m, d) * torch.tensor([1.0, 0, 1, 0]).repeat(d // 4)


@pytest.fixture
def graph() -> Graph:
    """One linear weight that holds 2:4."""
    model = nn.Linear(8, 4, bias=False)
    model.weight.data = two_of_four(4, 8)
    return graph_of(model, normal(2, 8))


def record(graph: Graph, W: Tensor | None, asked: str = "2:4") -> SiteRecord:
    stored = {} if W is None else {"weight": Stored(W, "Gemm axis 1")}
    [found] = site_records(graph, [Row("weight", "changed", asked=asked)], stored)
    return found


# *** sites ***


def test_a_file_that_holds_the_pattern_keeps_the_promise(graph):
    found = record(graph, two_of_four(4, 8))
    assert (found.holds, found.found, found.sparsity, found.where) == (True, "2:4", 0.5, "Gemm axis 1")


def test_values_may_be_scaled_as_folding_does_while_zeros_stay(graph):
    assert record(graph, two_of_four(4, 8) * torch.tensor([[2.0], [-3], [0], [1]])).holds


def test_one_weight_too_many_breaks_the_pattern(graph):
    W = two_of_four(4, 8)
    W[3, 1] = 1e-20
    found = record(graph, W)
    assert (found.holds, found.found) == (False, "3:4")


def test_the_pattern_on_the_wrong_axis_breaks_it(graph):
    assert record(graph, two_of_four(8, 4).T.contiguous()).holds is False


def test_a_pattern_with_other_zeros_than_the_graph_has_breaks_it(graph):
    W = two_of_four(4, 8).roll(1, dims=1)
    assert observed_pattern(W) == "2:4"
    assert record(graph, W).holds is False


def test_a_dense_file_of_a_dense_graph_breaks_it(graph):
    with torch.no_grad():
        graph.sites[0].weight.fill_(1.0)
    assert record(graph, torch.ones(4, 8)).holds is False


def test_a_transposed_weight_breaks_it(graph):
    assert record(graph, two_of_four(4, 8).T).holds is False


def test_a_site_that_is_not_in_the_file_breaks_it(graph):
    found = record(graph, None)
    assert (found.holds, found.where, found.sparsity) == (False, "not found in the file", None)


def test_a_ratio_holds_where_every_zero_of_the_graph_is_one_of_the_file(graph):
    assert record(graph, two_of_four(4, 8), asked="0.5").holds is True
    assert record(graph, two_of_four(4, 8) + 1e-6, asked="0.5").holds is False


def test_what_was_left_or_refused_is_not_judged_but_shown(graph):
    for status in ("left", "refused"):
        [found] = site_records(graph, [Row("weight", status, "why")], {"weight": Stored(normal(4, 8), "")})  # type: ignore[arg-type]
        assert (found.status, found.reason, found.holds, found.sparsity) == (status, "why", None, 0.0)


@pytest.mark.parametrize(
    ("scale", "holds"), [(2.0**-14, True), (2.0**-15, False), (0.0, False), (float("inf"), False), (-1.0, False)]
)
def test_scales_of_codes_have_to_be_normal_positive_numbers_of_their_type(graph, scale, holds):
    with torch.no_grad():
        graph.sites[0].weight.zero_()
    stored = Stored(torch.zeros(4, 8), "", dtype="int8", scale=torch.full((4, 1), scale, dtype=torch.float16))
    [found] = site_records(graph, [Row("weight", "changed", dtype="int8")], {"weight": stored})
    assert found.holds is holds


def test_a_site_that_no_pass_names_says_so(graph):
    [found] = site_records(graph, [], {})
    assert (found.status, found.reason) == ("left", "no pass names it")


def test_of_two_passes_the_last_that_changed_a_site_counts(graph):
    rows = [Row("weight", "changed", asked="0.5"), Row("weight", "changed", asked="2:4"), Row("weight", "left", "no")]
    [found] = site_records(graph, rows, {"weight": Stored(two_of_four(4, 8), "")})
    assert (found.asked, found.holds) == ("2:4", True)


def test_a_weight_that_is_no_site_is_listed_with_what_became_of_it():
    model = Compute(lambda self, x: self.inner(x) @ (self.masked * 2), masked=normal(8, 8), inner=nn.Linear(8, 8))
    graph = graph_of(model, normal(2, 8))
    for status in ("refused", "left"):
        rows = [Row("masked", "refused", "why")] if status == "refused" else []
        found = {one.name: one for one in site_records(graph, rows, {})}["masked"]
        assert (found.status, found.axis) == (status, -1)
        assert "before" in found.reason


# *** patterns ***


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ([[1, 0, 2, 0]], "2:4"),
        ([[1, 0, 0, 0]], "1:4"),
        ([[1, 2, 3, 0]], "3:4"),
        ([[1, 2, 3, 4]], ""),
        ([[0, 0, 0, 0]], ""),
        ([[1, 2, 3, 4, 0, 0, 0, 0]], "4:8"),
        ([[1, 0, 2]], ""),
        ([[1, 0, 2, 0], [0, 0, 0, 9]], "2:4"),
    ],
)
def test_the_pattern_that_values_show_along_their_last_axis(values, pattern):
    assert observed_pattern(torch.tensor(values)) == pattern


def test_counting_never_says_that_a_length_fits_which_does_not():
    assert most_nonzero(torch.zeros(2, 6), 4) == 5
    assert most_nonzero(torch.zeros(0, 8), 4) == 0


# *** parity ***


class Echo:
    """A source whose one workload is given, and which generates by the run's own first output."""

    def __init__(self, x: Tensor, generates: bool = False):
        self.x, self.generates = x, generates

    def workloads(self):
        return {"example": {"x": self.x}}

    def generate(self, run, n_tokens):
        return run({"x": self.x})["y"].argmax(-1).expand(n_tokens) if self.generates else None


def doubled(feeds):
    return {"y": feeds["x"] * 2}


@pytest.mark.parametrize("generates", [False, True])
def test_equal_runs_are_in_parity(generates):
    found = prove_parity(Echo(normal(3), generates), doubled, doubled, "float32")  # type: ignore[arg-type]
    assert found
    assert (found.difference, found.same_tokens, found.tokens) == (0, True if generates else None, 24 * generates)


@pytest.mark.parametrize("wrong", [1.001, -1.0, math.nan, math.inf])
def test_a_perturbed_output_is_out_of_parity(wrong):
    found = prove_parity(Echo(normal(3)), doubled, lambda feeds: {"y": feeds["x"] * 2 * wrong}, "float32")  # type: ignore[arg-type]
    assert not found


@pytest.mark.parametrize(("dtype", "fails"), [("float32", True), ("float16", False)])
def test_other_tokens_fail_in_single_precision_and_are_a_near_tie_in_half(dtype, fails):
    x = torch.tensor([1.0, 1.0 - 1e-6])

    def nearly(feeds):
        return {"y": feeds["x"] * 2 - torch.tensor([4e-6, 0.0])}

    def exact(feeds):
        return {"y": x * 2}

    found = prove_parity(Echo(x, generates=True), exact, nearly, dtype)  # type: ignore[arg-type]
    if dtype == "float32":
        assert found.same_tokens is False
        assert bool(found) is not fails


def test_inputs_are_cast_to_the_artifacts_precision_and_integers_are_not():
    seen = cast(lambda feeds: dict(feeds), "float16")({"x": normal(2), "ids": torch.ones(2, dtype=torch.long)})
    assert {name: x.dtype for name, x in seen.items()} == {"x": torch.float16, "ids": torch.long}


def test_every_workload_is_timed_on_both():
    graph = graph_of(nn.Identity(), normal(3))
    [row] = time_beside_dense(Echo(normal(3)), graph, doubled, doubled, "float32", QUIET)  # type: ignore[arg-type]
    assert row.workload == "example"
    assert set(row.latency) == {"dense", "artifact"}
    [row] = time_beside_dense(Echo(normal(3)), graph, doubled, doubled, "float32", QUIET, doubled)  # type: ignore[arg-type]
    assert list(row.latency) == ["dense", "artifact", "not quantized"]


# *** verdict ***


def site(name: str = "w", status: str = "changed", holds: bool | None = True) -> SiteRecord:
    return SiteRecord(
        name, "linear.default", (4, 8), 1, status, "its reason" if status == "refused" else "", holds=holds
    )


def scores(drop: float, allowed: float | None) -> Scores:
    one = perplexity([1.0, 2.0], "windows")
    return Scores("", one, one, one, drop, 0.0, allowed)


GOOD = (site(),)


def unmet(sites=GOOD, scored=None, parity=EXACT, allow_partial=False) -> list[str]:
    return [one.name for one in promises(sites, scored, parity, allow_partial) if not one.met]


def test_all_is_well():
    assert unmet(scored=scores(0.5, 1.0)) == []


def test_a_refused_site_is_a_promise_not_met_unless_allowed():
    sites = (site(), site("v", "refused", None))
    assert unmet(sites) == ["every named site is changed"]
    assert unmet(sites, allow_partial=True) == []
    assert "1 refused (v: its reason)" in promises(sites, None, EXACT, False)[0].detail


def test_a_broken_pattern_is_a_promise_not_met_that_partial_does_not_excuse():
    sites = (site(), site("v", holds=False))
    assert unmet(sites, allow_partial=True) == ["the written file holds the pattern"]
    assert "1 of 2 sites" in promises(sites, None, EXACT, False)[1].detail


def test_nothing_asked_is_no_promise_about_a_pattern():
    assert [one.name for one in promises((site(status="left", holds=None),), None, EXACT, False)] == [
        "every named site is changed",
        "the artifact computes what torch computes",
    ]


def test_a_difference_beyond_the_tolerance_is_a_promise_not_met():
    assert unmet(parity=Parity(2e-4, 1e-4, ())) == ["the artifact computes what torch computes"]
    assert unmet(parity=Parity(0.0, 1e-4, (), False, 24)) == ["the artifact computes what torch computes"]


@pytest.mark.parametrize(
    ("drop", "allowed", "met"), [(0.9, 1.0, True), (1.1, 1.0, False), (-3.0, 0.0, True), (9, None, True)]
)
def test_the_budget(drop, allowed, met):
    assert unmet(scored=scores(drop, allowed)) == ([] if met else ["the score stays within the budget"])


@pytest.mark.parametrize("allowed", [None, 1.0])
def test_a_score_that_is_not_a_number_never_passes(allowed):
    dense, artifact = perplexity([1.0, 2.0], "windows"), perplexity([math.nan, 2.0], "windows")
    scored = Scores("", dense, artifact, artifact, *score_drop(dense, artifact), allowed)
    assert unmet(scored=scored) == ["the score is a number"]


def test_weights_that_only_lost_channels_are_promised_as_what_is_left():
    smaller = dataclasses.replace(site(), dense_shape=(8, 8))
    sparse = dataclasses.replace(smaller, asked="2:4")
    promised = [promises((one,), None, EXACT, False)[1].name for one in (smaller, sparse)]
    assert promised == ["the written file holds the weights that are left", "the written file holds the pattern"]
