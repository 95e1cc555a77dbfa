"""Scores of units and what their removal costs, against brute force in float64."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compressor.passes import removal
from compressor.passes.removal import Shrinking, activation, by_unit, magnitude, refitted, removal_errors


def layer(m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights, and the Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(m, d, generator=generator, dtype=torch.float64)
    X = torch.randn(6 * d, d, generator=generator, dtype=torch.float64)
    X = X @ (torch.eye(d, dtype=torch.float64) + 0.5 * torch.randn(d, d, generator=generator, dtype=torch.float64))
    return W, X.T @ X / len(X)


def error(V: Tensor, W: Tensor, H: Tensor) -> float:
    return float((((V - W) @ H) * (V - W)).sum())


def best(W: Tensor, H: Tensor, keep: Tensor) -> Tensor:
    """Least squares, row by row, through the square root of H."""
    root = torch.linalg.cholesky(H).T  # H = root^T root
    V = torch.zeros_like(W)
    V[:, keep] = torch.linalg.lstsq(root[:, keep], root @ W.T).solution.T
    return V


def test_positions_are_summed_by_unit_and_those_of_none_are_left_out():
    owner = torch.tensor([0, 2, -1, 2])
    assert by_unit(torch.tensor([1.0, 2.0, 4.0, 8.0]), owner, 4).tolist() == [1, 0, 10, 0]


def test_magnitude_is_the_sum_of_squares_along_any_axis():
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert magnitude(x, 1, torch.tensor([0, 1, 0]), 2).tolist() == [
        0 + 1 + 36 + 49 + 16 + 25 + 100 + 121,
        4 + 9 + 64 + 81,
    ]


def test_activation_is_the_energy_of_single_contributions():
    W, H = layer(3, 6)
    owner = torch.tensor([0, 0, 1, 1, 1, -1])
    wanted = [sum(float(W[:, j].square().sum() * H[j, j]) for j in S) for S in ([0, 1], [2, 3, 4])]
    assert activation(W, H, owner, 2).tolist() == pytest.approx(wanted)


@given(st.integers(1, 5), st.integers(2, 12), st.integers(0, 10**6))
def test_the_refit_is_the_least_squares_solution(m, d, seed):
    W, H = layer(m, d, seed)
    keep = torch.rand(d, generator=torch.Generator().manual_seed(seed)) < 0.6
    V = refitted(W, H, keep)
    assert not V[:, ~keep].any()
    assert torch.allclose(V, best(W, H, keep), atol=1e-8)


def test_a_layer_that_keeps_everything_is_left_as_it_is_and_one_that_keeps_nothing_is_zero():
    W, H = layer(3, 5)
    assert torch.equal(refitted(W, H, torch.ones(5, dtype=torch.bool)), W)
    assert not refitted(W, H, torch.zeros(5, dtype=torch.bool)).any()


@given(st.integers(1, 4), st.lists(st.integers(-1, 3), min_size=4, max_size=10), st.integers(0, 10**6))
def test_the_cost_of_a_unit_is_the_error_after_its_removal_and_a_refit(m, owners, seed):
    owner = torch.tensor(owners)
    W, H = layer(m, len(owners), seed)
    found = Shrinking(W, H, owner).errors(4)
    for unit in range(4):
        if (owner == unit).any():
            assert float(found[unit]) == pytest.approx(error(best(W, H, owner != unit), W, H), abs=1e-8)
        else:
            assert torch.isinf(found[unit])


@given(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=5, max_size=10), st.integers(0, 10**6))
def test_costs_add_up_over_removals_one_after_the_other(m, owners, seed):
    owner = torch.tensor(owners)
    W, H = layer(m, len(owners), seed)
    left, spent, keep = Shrinking(W, H, owner), 0.0, torch.ones(len(owners), dtype=torch.bool)
    for unit in owner.unique().tolist():
        spent += float(left.errors(5)[unit])
        left.remove(torch.tensor([unit]))
        keep &= owner != unit
        assert spent == pytest.approx(error(best(W, H, keep), W, H), abs=1e-7)


def test_of_two_that_are_alike_one_goes_first_and_the_other_then_costs_what_both_bring():
    W, H = layer(4, 6)
    H[5], H[:, 5] = H[4], H[:, 4]  # column 5 repeats column 4
    H[5, 5] = H[4, 4]
    H += 1e-9 * torch.eye(6, dtype=torch.float64)
    found = removal_errors([(W, H, torch.arange(6))], 6)
    first, second = sorted((float(found[4]), float(found[5])))
    assert first < 1e-6 < second


def lost(W: Tensor, H: Tensor, order: Tensor) -> float:
    """What is lost, refitted, when the first half of the columns goes."""
    keep = torch.ones(W.shape[1], dtype=torch.bool).index_fill(0, order[: W.shape[1] // 2], False)
    return error(best(W, H, keep), W, H)


def test_the_order_comes_near_to_the_best_of_all_subsets():
    found = {"removal": 0.0, "magnitude": 0.0}
    for seed in range(8):
        W, H = layer(6, 10, seed)
        owner = torch.arange(10)
        least = min(lost(W, H, torch.tensor(S)) for S in combinations(range(10), 5))
        found["removal"] += lost(W, H, removal_errors([(W, H, owner)], 10).argsort()) / least / 8
        found["magnitude"] += lost(W, H, magnitude(W, 1, owner, 10).argsort()) / least / 8
    assert found["removal"] < 1.15 < 1.5 < found["magnitude"]


def test_layers_that_share_a_group_are_counted_together_as_shares_of_their_energy():
    first, second = layer(3, 4, 1), layer(5, 8, 2)
    own = [(*first, torch.arange(4)), (*second, torch.arange(8) // 2)]
    energies = [float(((W @ H) * W).sum()) for W, H, _ in own]
    singles = [Shrinking(*one).errors(4) / energy for one, energy in zip(own, energies, strict=True)]
    found = removal_errors(own, 4)
    assert float(found.min()) == pytest.approx(float(sum(singles).min()))  # type: ignore[arg-type]
    scaled = [(10 * first[0], first[1], torch.arange(4)), own[1]]
    assert torch.allclose(removal_errors(scaled, 4), found)


def test_rounds_that_remove_several_units_lose_little_more(monkeypatch):
    W, H = layer(16, 64)
    in_rounds = lost(W, H, removal_errors([(W, H, torch.arange(64))], 64).argsort())
    by_chance = lost(W, H, torch.randperm(64))
    monkeypatch.setattr(removal, "ROUND", 64)
    one_by_one = lost(W, H, removal_errors([(W, H, torch.arange(64))], 64).argsort())
    assert in_rounds < 1.1 * one_by_one < by_chance


def test_the_magnitude_of_a_bias_is_its_square():
    assert magnitude(torch.tensor([1.0, -2.0, 3.0]), 0, torch.tensor([0, 1, 1]), 2).tolist() == [1, 13]
