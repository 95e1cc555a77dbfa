"""Dense targets on pruned inputs, against the objective they come from."""

import torch

from compressor.passes.damping import dampen
from compressor.passes.targets import dense_target
from tests.passes.reference import layer, normal


def problem(m=6, d=16, n=400):
    W, Z = layer(m, d, n)
    X = Z + 0.3 * Z.std() * normal(n, d, seed=1)
    W, Z, X = W.double(), Z.double(), X.double()
    return W, Z, X, Z.T @ X / n, X.T @ X / n


def test_the_target_is_the_damped_least_squares_from_pruned_inputs_to_dense_outputs():
    W, Z, X, G, H = problem()
    lam = 0.05
    V = dense_target(W, G, H, dampen(H, lam))
    # The same with rows added to the data: X V^T = Z W^T, and sqrt(n lam H_jj) V_j = sqrt(n lam H_jj) W_j.
    pull = (len(X) * lam * H.diagonal()).sqrt().diag()
    expected = torch.linalg.lstsq(torch.cat([X, pull]), torch.cat([Z @ W.T, pull @ W.T])).solution.T
    torch.testing.assert_close(V, expected, rtol=1e-8, atol=1e-8)


def test_inputs_that_are_not_pruned_leave_the_weights_as_their_own_target():
    W, _, _, _, H = problem()
    torch.testing.assert_close(dense_target(W, H, H, dampen(H, 0.05)), W)


def test_a_channel_that_pruning_silenced_keeps_its_weights():
    W, Z, X, _, _ = problem()
    X[:, 3] = 0
    H = X.T @ X / len(X)
    V = dense_target(W, Z.T @ X / len(X), H, dampen(H, 0.05))
    assert torch.equal(V[:, 3], W[:, 3])
    assert not torch.equal(V[:, 4], W[:, 4])
