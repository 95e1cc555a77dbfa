"""The bias refitted with the weights, against the least squares that has a channel of ones."""

import torch

from compressor.passes.offset import centre, mean_output
from tests.passes.reference import layer, least_squares, normal


def problem(m=6, d=16, n=400):
    W, X = layer(m, d, n)
    return W.double(), X.double() + 3 * normal(d, seed=1).double(), normal(m, d) > 0


def test_eliminating_the_ones_first_is_exact_least_squares_over_weights_and_bias():
    W, X, keep = problem()
    ones = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], 1)
    kept = torch.cat([keep, torch.ones(len(W), 1, dtype=torch.bool)], 1)
    joint = least_squares(torch.cat([W, torch.zeros(len(W), 1, dtype=X.dtype)], 1), ones.T @ ones / len(X), kept)
    x = X.mean(0)
    V = least_squares(W, centre((X.T @ X / len(X))[None], x[None])[0], keep)
    torch.testing.assert_close(V, joint[:, :-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean_output((W - V)[None], x[None])[0], joint[:, -1], rtol=1e-9, atol=1e-9)


def test_a_channel_that_never_changes_is_zero_whatever_rounding_left():
    X = torch.cat([normal(1000, 3), torch.full((1000, 1), 7.3)], 1)
    C = centre((X.T @ X / 1000)[None], X.mean(0)[None])[0]
    assert not C[3].any()
    assert not C[:, 3].any()
    torch.testing.assert_close(C[:3, :3], torch.cov(X[:, :3].T, correction=0))
