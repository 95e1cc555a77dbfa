"""Rounding to a grid against brute force, with the zeros where they were."""

from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.passes.refit import squared_error
from compressor.passes.rounding import coordinate_descent, nearest
from tests.compressor.tiny import normal


def gram(d: int, seed: int) -> torch.Tensor:
    X = normal(4 * d, d, seed=seed) @ normal(d, d, seed=seed + 1)
    return X.T @ X / (4 * d) + 0.01 * torch.eye(d)


def test_the_nearest_point_of_the_grid_is_clipped_to_its_end():
    W, S = torch.tensor([[0.26, -0.24, 9.0]]), torch.full((1, 3), 0.5)
    assert nearest(W, S, 7).tolist() == [[0.5, -0.0, 3.5]]


def best(W: torch.Tensor, S: torch.Tensor, H: torch.Tensor, largest: int) -> float:
    codes = torch.tensor(list(product(range(-largest, largest + 1), repeat=W.shape[1]))).float()
    return min(squared_error(q[None] * S, W, H) for q in codes)


def test_descent_comes_near_the_best_of_all_roundings_where_the_nearest_does_not():
    descended, plain, least = 0.0, 0.0, 0.0
    for seed in range(12):
        W, S, H = normal(1, 4, seed=seed), torch.full((1, 4), 0.5), gram(4, seed)
        least += best(W, S, H, 3)
        descended += squared_error(coordinate_descent(W, S, H, 3, sweeps=4), W, H)
        plain += squared_error(nearest(W, S, 3), W, H)
    assert least <= descended * (1 + 1e-5)
    assert descended - least < 0.5 * (plain - least)


@given(st.integers(0, 1000), st.sampled_from([4, 130]), st.sampled_from([1, 3]))
def test_it_lies_on_the_grid_keeps_zeros_and_is_no_worse_than_the_nearest(seed, d, sweeps):
    W, H = normal(3, d, seed=seed), gram(d, seed)
    W = W * (normal(3, d, seed=seed + 2) > 0)
    S = torch.full_like(W, 0.3)
    Q = coordinate_descent(W, S, H, 7, sweeps)
    torch.testing.assert_close(Q / S, (Q / S).round(), rtol=0, atol=1e-4)
    assert (Q / S).abs().max() < 7.001
    assert (Q[W == 0] == 0).all()
    assert squared_error(Q, W, H) <= squared_error(nearest(W, S, 7), W, H) * (1 + 1e-4)
