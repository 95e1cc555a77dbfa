"""What removing weights costs, and one share divided so that it costs least."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.passes.allocate import SHARES, Curve, choose_dense, divide, measure_losses
from compressor.pattern import NM, Ratio
from tests.compressor.tiny import normal

cubes = tuple(share**3 for share in SHARES)


def curve(size: int, cost: float) -> Curve:
    """Of losses size * cost * share^3."""
    return Curve(size, tuple(size * cost * loss for loss in cubes))


def total(curves: list[Curve], shares: list[float]) -> float:
    return sum(one.at(share) for one, share in zip(curves, shares, strict=True))


def test_matrices_that_cost_alike_lose_alike():
    assert divide([curve(100, 1.0), curve(300, 1.0)], 0.5) == pytest.approx([0.5, 0.5], abs=0.01)


def test_more_is_taken_where_it_costs_less_and_the_total_is_exact():
    shares = divide([curve(100, 1.0), curve(300, 4.0)], 0.4)
    assert 100 * shares[0] + 300 * shares[1] == pytest.approx(0.4 * 400)
    # Equal slopes: x^2 = 4 y^2.
    assert shares[0] / shares[1] == pytest.approx(2, rel=0.03)


def test_no_matrix_loses_more_than_its_curve_tells():
    assert divide([curve(100, 1e-9), curve(100, 1.0)], 0.6)[0] == pytest.approx(SHARES[-1])
    with pytest.raises(ValueError, match="cannot remove 99%: curves end at 95%"):
        divide([curve(100, 1.0)], 0.99)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=3), st.floats(0.2, 0.8))
def test_no_other_way_to_remove_as_much_costs_less(costs, share):
    curves = [curve(100, cost) for cost in costs]
    least = total(curves, divide(curves, share))
    steps = [i / 20 * SHARES[-1] for i in range(21)]
    for others in product(steps, repeat=len(costs) - 1):
        last = share * len(costs) - sum(others)
        if 0 <= last <= SHARES[-1]:
            assert least <= total(curves, [*others, last]) * 1.001


def test_a_curve_passes_through_what_was_measured_and_starts_at_nothing():
    one = curve(10, 1.0)
    assert [one.at(share) for share in SHARES] == pytest.approx(list(one.losses))
    assert one.at(0) == 0
    assert one.at(0.55) == pytest.approx(10 * 0.55**3)


def test_of_uncorrelated_inputs_a_curve_is_half_the_energy_of_the_least_weights():
    W, H = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]]), torch.eye(5)
    patterns = [Ratio(0.2), Ratio(0.5), NM(2, 5)]
    found = measure_losses(W, H, torch.ones(2), 0.01, patterns)
    assert found == pytest.approx([(1 + 4) / 2, (1 + 4 + 9 + 16 + 25) / 2, (1 + 4 + 9 + 36 + 49 + 64) / 2])


def test_weights_of_outputs_that_cost_nothing_go_first():
    W, H = torch.ones(2, 10), torch.eye(10)
    assert measure_losses(W, H, torch.tensor([1.0, 1e-6]), 0.01, [Ratio(0.5)]) == pytest.approx([5e-6])


def test_what_correlated_inputs_make_up_for_costs_nothing():
    X = normal(200, 5).repeat(1, 2)  # every channel twice
    W = torch.cat([normal(3, 5), 0.1 * normal(3, 5, seed=1)], 1)
    dropped = torch.cat([torch.zeros(3, 5), W[:, 5:]], 1) @ X.T
    [loss] = measure_losses(W, X.T @ X / 200, torch.ones(3), 0.01, [Ratio(0.5)])
    assert loss < 0.3 * float(dropped.square().sum()) / 200 / 2


def test_what_costs_most_for_each_weight_stays_dense_while_it_fits():
    assert choose_dense([10, 10, 80], [5.0, 9.0, 80.0], 0.2) == [True, True, False]
    assert choose_dense([10, 10, 80], [5.0, 9.0, 80.0], 0.1) == [False, True, False]
    assert choose_dense([10, 10, 80], [5.0, 9.0, 80.0], 0.8) == [False, False, True]
    assert choose_dense([10, 10], [1.0, 1.0], 0.5) == [True, False]
