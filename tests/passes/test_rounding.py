"""Rounding to a grid against brute force, with the zeros where they were."""

from itertools import product

import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.passes.refit import squared_error
from compressor.passes.rounding import coordinate_descent, fitted_scales, nearest, solve
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


@given(st.integers(0, 1000), st.sampled_from([(32, 16), (48, 16)]))
def test_scales_that_are_fitted_to_codes_lose_no_more_than_those_before_and_lie_at_a_least(seed, sizes):
    d, group = sizes
    W, H = normal(3, d, seed=seed), gram(d, seed)
    C, scale = (W / 0.4).round().clamp(-7, 7), torch.full((3, d // group), 0.4)

    def lost(scale: torch.Tensor) -> float:
        return squared_error(C * scale.repeat_interleave(group, 1), W, H)

    fitted = fitted_scales(C, W, scale, H)
    assert (fitted > 0).all()
    assert lost(fitted) <= lost(scale)
    assert all(lost(fitted) <= lost(fitted * factor) * (1 + 1e-4) for factor in (0.99, 1.01))


def test_a_group_without_codes_keeps_its_scale_and_the_others_theirs_where_they_are_right():
    C = torch.tensor([[0.0, 0.0, 3.0, -5.0]])
    scale = torch.tensor([[0.7, 0.5]])
    fitted = fitted_scales(C, C * scale.repeat_interleave(2, 1), scale, torch.eye(4))
    torch.testing.assert_close(fitted, scale)


def test_codes_and_scales_in_turn_lose_less_than_codes_alone_and_keep_zeros():
    alone, in_turn = 0.0, 0.0
    for seed in range(8):
        W, H, scale = normal(6, 64, seed=seed), gram(64, seed), torch.full((6, 4), 0.45)
        W = W * (normal(6, 64, seed=seed + 2) > 0)
        for refits, where in ((0, "alone"), (2, "in turn")):
            Q, fitted = solve(W, scale, H, 7, 4, refits)
            S = fitted.repeat_interleave(16, 1)
            torch.testing.assert_close(Q / S, (Q / S).round(), rtol=0, atol=1e-4)
            assert (Q[W == 0] == 0).all()
            if where == "alone":
                alone += squared_error(Q, W, H)
            else:
                in_turn += squared_error(Q, W, H)
    assert in_turn < 0.95 * alone
