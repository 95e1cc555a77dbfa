"""Who shares a group of N:M: never worse than before, the optimum where it can be tried out."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.passes.neighbours import best_order, lost_score
from tests.compressor.tiny import normal


def scores(rows: int, d: int, seed: int = 0) -> Tensor:
    return normal(rows, d, seed=seed).square()


def least_loss(S: Tensor) -> float:
    """Of all ways to make two groups of four of eight columns."""
    ways = [[0, *some, *(c for c in range(1, 8) if c not in some)] for some in combinations(range(1, 8), 3)]
    return min(lost_score(S, torch.tensor(way), 2, 4) for way in ways)


def test_what_is_lost_is_what_is_not_among_the_n_highest_of_m():
    S = torch.tensor([[5.0, 1.0, 4.0, 2.0, 7.0, 8.0, 0.0, 6.0]])
    assert lost_score(S, torch.arange(8), 2, 4) == 1 + 2 + 0 + 6
    assert lost_score(S, torch.arange(8), 1, 4) == 1 + 2 + 4 + 0 + 6 + 7
    assert lost_score(S, torch.tensor([1, 3, 0, 2, 6, 4, 5, 7]), 3, 4) == 1 + 0


def test_columns_that_crowd_one_group_are_spread():
    S = torch.tensor([[9.0, 8.0, 7.0, 6.0, 0.0, 0.0, 0.0, 0.0]])
    assert lost_score(S, torch.arange(8), 2, 4) == 13
    assert lost_score(S, best_order(S, 2, 4, seed=0), 2, 4) == 0


def test_columns_that_are_alike_stay_where_they_are():
    assert torch.equal(best_order(torch.ones(3, 8), 2, 4, seed=0), torch.arange(8))


@pytest.mark.parametrize("seed", range(20))
def test_of_all_ways_to_make_two_groups_finds_one_near_the_best_that_no_swap_betters(seed):
    S = scores(6, 8, seed)
    order = best_order(S, 2, 4, seed=0, rounds=200)
    lost = lost_score(S, order, 2, 4)
    assert least_loss(S) - 1e-5 <= lost <= 1.06 * least_loss(S)
    assert all(lost_score(S, swapped(order, i, j), 2, 4) >= lost - 1e-5 for i in range(4) for j in range(4, 8))


def swapped(order: Tensor, i: int, j: int) -> Tensor:
    other = order.clone()
    other[[i, j]] = order[[j, i]]
    return other


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)]), st.integers(1, 6), st.integers(1, 20), st.integers(0, 99)
)
def test_every_order_is_one_and_none_is_worse_than_none_at_all(pattern, n_groups, rows, seed):
    n, m = pattern
    S = scores(rows, m * n_groups, seed)
    order = best_order(S, n, m, seed, rounds=4)
    assert torch.equal(order.sort().values, torch.arange(m * n_groups))
    assert lost_score(S, order, n, m) <= lost_score(S, torch.arange(m * n_groups), n, m)
    assert torch.equal(order, best_order(S, n, m, seed, rounds=4))


def test_more_groups_than_are_dealt_at_once_lose_less_too():
    S = scores(8, 4 * 200) * torch.logspace(0, 3, 800)
    assert lost_score(S, best_order(S, 2, 4, seed=0), 2, 4) < 0.7 * lost_score(S, torch.arange(800), 2, 4)
