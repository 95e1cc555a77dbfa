import pytest
import torch
from torch import Tensor

from compressor.proof.parity import ROUNDED, TOLERANCE, Parity, difference, in_words, tolerance

INF, NAN = float("inf"), float("nan")


def between(expected: Tensor, found: Tensor) -> float:
    return difference(lambda feeds: {"y": expected}, lambda feeds: {"y": found}, {})


@pytest.mark.parametrize(
    ("expected", "found", "gap"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [2.0, -4.0], 0.25),
        ([1.0, -4.0], [1.0, 4.0], 2.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1, 2], [1, 3], 0.5),
        ([True, False], [True, True], 1.0),
        ([], [], 0.0),
        ([1.0], [NAN], INF),
        ([NAN], [1.0], INF),
        ([1.0], [INF], INF),
        ([NAN, 4.0], [NAN, 5.0], 0.25),
        ([-INF, 4.0], [-INF, 5.0], 0.25),
        ([-INF, 4.0], [INF, 4.0], INF),
        ([NAN, INF], [NAN, INF], 0.0),
    ],
)
def test_the_difference_is_relative_to_the_largest_value(expected, found, gap):
    assert between(torch.tensor(expected), torch.tensor(found)) == gap


def test_half_precision_is_compared_in_double():
    assert between(torch.tensor([1.0]), torch.tensor([1.0009765625], dtype=torch.float16)) == 2**-10


def test_another_shape_is_as_different_as_can_be():
    assert between(torch.zeros(2, 1), torch.zeros(2)) == INF


def test_the_largest_over_all_outputs_counts():
    expected = {"a": torch.tensor([1.0]), "b": torch.tensor([10.0])}
    found = {"a": torch.tensor([1.5]), "b": torch.tensor([11.0])}
    assert difference(lambda feeds: expected, lambda feeds: found, {}) == 0.5


def test_both_runtimes_are_given_the_same_inputs():
    seen: list[object] = []

    def run(feeds):
        seen.append(feeds)
        return {"y": torch.zeros(1)}

    feeds = {"x": torch.ones(1)}
    difference(run, run, feeds)
    assert seen == [feeds, feeds]


@pytest.mark.parametrize(
    ("gap", "same_tokens", "holds"),
    [
        (1e-5, None, True),
        (1e-4, True, True),
        (2e-4, True, False),
        (1e-5, False, False),
        (INF, None, False),
        (NAN, None, False),
    ],
)
def test_parity_holds_within_tolerance_and_with_the_same_tokens(gap, same_tokens, holds):
    assert bool(Parity(gap, TOLERANCE["float32"], ("prefill",), same_tokens)) is holds


def test_less_precision_is_allowed_more():
    assert TOLERANCE["float32"] < TOLERANCE["float16"] < TOLERANCE["bfloat16"]


@pytest.mark.parametrize(("shift", "allowed"), [(0.0, ROUNDED), (0.25, 0.5)])
def test_where_activations_are_rounded_twice_what_rounding_changes_is_allowed(shift, allowed):
    def rounded(feeds):
        return {"y": torch.tensor([4.0, feeds["x"]])}

    def unrounded(feeds):
        return {"y": torch.tensor([4.0, feeds["x"] + 4 * shift])}

    workloads = [{"x": 1.0}, {"x": 2.0}]
    assert tolerance(rounded, workloads, "float32", unrounded) == pytest.approx(allowed)
    assert tolerance(rounded, workloads, "float32") == TOLERANCE["float32"]


@pytest.mark.parametrize(("allowed", "text"), [(1e-4, "1e-04"), (0.163, "1.6e-01")])
def test_what_is_allowed_is_said_beside_what_was_found(allowed, text):
    assert in_words(2.13e-6, allowed) == f"largest relative difference 2.1e-06 (allowed {text})"
