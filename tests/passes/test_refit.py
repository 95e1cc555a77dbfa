import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.passes.damping import dampen
from compressor.passes.masks import nm_keep, ratio_keep
from compressor.passes.refit import conjugate_gradients, gradients_of_both, relative_error, squared_error
from compressor.passes.sparsegpt import sparsegpt
from compressor.pattern import NM
from tests.passes.reference import layer, least_squares, normal


def problem(m=24, d=64, seed=0, lam=0.01):
    W, X = layer(m, d, 8 * d, seed)
    H = dampen(X.T @ X / len(X), lam)
    return W, H, ratio_keep(W.abs() * H.diagonal().sqrt(), 0.5)


def exact_error(V, W, H):
    D = (V - W).double()
    return float(((D @ H.double()) * D).sum())


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(2, 60),
    st.integers(0, 80),
    st.sampled_from([1e-3, 0.01, 1.0]),
    st.integers(0, 10**6),
)
def test_the_error_never_rises_and_zeros_stay_zero(m, d, iters, lam, seed):
    W, H, keep = problem(m, d, seed, lam)
    start = normal(m, d, seed=seed) * keep
    V = conjugate_gradients(start, keep, W, H, iters)
    assert not V[~keep].any()
    assert exact_error(V, W, H) <= exact_error(start, W, H) * (1 + 1e-6)


def test_each_step_lowers_the_error():
    W, H, keep = problem()
    errors = [exact_error(conjugate_gradients(W * keep, keep, W, H, k), W, H) for k in range(8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(exact_error(W * keep, W, H))


def test_many_steps_reach_the_exact_least_squares_on_the_mask():
    W, H, keep = problem()
    V = conjugate_gradients(torch.zeros_like(W).double(), keep, W.double(), H.double(), 200)
    torch.testing.assert_close(V, least_squares(W, H, keep), rtol=1e-9, atol=1e-9)


def test_ten_steps_after_sparsegpt_come_within_a_few_percent_of_the_optimum():
    W, H, _ = problem(64, 256)
    V, keep = sparsegpt(W, H, NM(2, 4))
    best = exact_error(least_squares(W, H, keep), W, H)
    assert exact_error(conjugate_gradients(V, keep, W, H), W, H) < 1.03 * best
    assert exact_error(V, W, H) > 1.06 * best


def test_staying_past_convergence_does_no_harm():
    W, H, keep = problem()
    best = exact_error(least_squares(W, H, keep), W, H)
    assert exact_error(conjugate_gradients(W * keep, keep, W, H, 2000), W, H) < best * (1 + 1e-5)


def test_a_target_other_than_the_start_is_approached():
    W, H, keep = problem()
    target = W + normal(*W.shape)
    V = conjugate_gradients((W * keep).double(), keep, target.double(), H.double(), 200)
    torch.testing.assert_close(V, least_squares(target, H, keep), rtol=1e-9, atol=1e-9)


def test_with_everything_kept_the_target_itself_comes_back():
    W, H, _ = problem()
    everything = torch.ones_like(W, dtype=torch.bool)
    V = conjugate_gradients(torch.zeros_like(W).double(), everything, W.double(), H.double(), 500)
    torch.testing.assert_close(V, W.double(), rtol=1e-9, atol=1e-9)


def test_rows_with_nothing_kept_or_nothing_to_do_are_left_finite():
    W, H, keep = problem()
    keep[0], W[1] = False, 0
    V = conjugate_gradients(torch.zeros_like(W), keep, W, H)
    assert V.isfinite().all()
    assert not V[:2].any()


def test_start_outside_the_mask_is_cut_off_and_arguments_are_left_alone():
    W, H, keep = problem()
    before = W.clone()
    assert torch.equal(conjugate_gradients(W, keep, W, H, 0), W * keep)
    conjugate_gradients(W, keep, W, H, 3)
    assert torch.equal(W, before)


def test_the_error_is_the_mean_squared_change_of_the_outputs():
    W, X = layer(8, 16, 100)
    V = W * nm_keep(W.abs(), 2, 4)
    H = X.T @ X / len(X)
    change = float((X @ (V - W).T).square().sum() / 100)
    energy = float((X @ W.T).square().sum() / 100)
    assert squared_error(V, W, H) == pytest.approx(change, rel=1e-4)
    assert relative_error(V, W, H) == pytest.approx(change / energy, rel=1e-4)


def test_relative_error_is_one_for_zeros_and_zero_for_a_silent_layer():
    W, H, _ = problem()
    assert relative_error(torch.zeros_like(W), W, H) == 1
    assert relative_error(W, W, H) == 0
    assert relative_error(W, torch.zeros_like(W), H) == 0


# *** to the loss ***


def felt_problem(m=5, d=6, seed=0):
    W, H, keep = problem(m, d, seed)
    G = normal(40, m, seed=seed + 1)
    return W.double(), H.double(), keep, dampen(G.T @ G / 40, 0.05).double()


def felt_error(V, W, H, F):
    return float((F @ (V - W) @ H * (V - W)).sum())


def test_many_steps_reach_the_exact_optimum_over_all_kept_weights_of_all_rows():
    W, H, keep, F = felt_problem()
    V = gradients_of_both(torch.zeros_like(W), keep, W, H, F, 200)
    K = torch.kron(F, H)  # the error is vec(V - W)^T K vec(V - W), row after row
    at = keep.flatten().nonzero().squeeze(1)
    exact = torch.zeros(W.numel(), dtype=torch.float64)
    exact[at] = torch.linalg.solve(K[at][:, at], K[at] @ W.flatten())
    torch.testing.assert_close(V, exact.view_as(W), rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 30), st.integers(0, 10**6))
def test_the_felt_error_never_rises_and_zeros_stay_zero(iters, seed):
    W, H, keep, F = felt_problem(seed=seed)
    V = gradients_of_both(W * keep, keep, W, H, F, iters)
    assert not V[~keep].any()
    assert felt_error(V, W, H, F) <= felt_error(W * keep, W, H, F) * (1 + 1e-9)


def test_where_all_outputs_are_felt_alike_the_two_refits_agree():
    W, H, keep, _ = felt_problem()
    ours = gradients_of_both(W * keep, keep, W, H, torch.eye(len(W), dtype=torch.float64), 100)
    torch.testing.assert_close(ours, conjugate_gradients(W * keep, keep, W, H, 100), rtol=1e-8, atol=1e-8)
