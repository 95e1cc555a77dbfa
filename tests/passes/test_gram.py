"""Factors of a Gram matrix: what they solve, and that weights that share them get what each gets alone."""

import pytest
import torch

from compressor.passes.damping import dampen
from compressor.passes.gram import Gram, IndefiniteGram
from compressor.passes.methods import METHODS, method_of
from compressor.pattern import NM, Ratio
from tests.passes.reference import layer


def damped(d=32, n=512):
    _, X = layer(1, d, n)
    return dampen(X.T @ X / n, 0.01)


@pytest.mark.parametrize("m", [4, 64], ids=["by its factor", "by its inverse"])
def test_shifted_solves_with_the_correlations_plus_rho(m):
    gram = Gram(damped().double())
    R = torch.randn(32, m, dtype=torch.float64)
    B = gram.shifted(0.1)(R)
    torch.testing.assert_close(gram.correlations().diagonal(), torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(gram.correlations() @ B + 0.1 * B, R)


@pytest.mark.parametrize("pattern", [NM(2, 4), Ratio(0.7)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_weights_that_share_a_gram_matrix_get_the_bytes_that_each_gets_alone(name, pattern):
    H, solve = damped(), method_of(name, 12)
    shared = Gram(H, is_shared=True)
    for m in (4, 32, 96):
        W, _ = layer(m, 32, 8, seed=m)
        for ours, alone in zip(solve(W, shared, pattern), solve(W, H, pattern), strict=True):
            assert torch.equal(ours, alone)


@pytest.mark.parametrize(("is_shared", "factors"), [(True, 1), (False, 3)])
def test_what_is_shared_is_factorized_once_and_what_is_not_is_not_kept(monkeypatch, is_shared, factors):
    cholesky, calls = torch.linalg.cholesky_ex, []
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda H: calls.append(1) or cholesky(H))
    gram = Gram(damped(), is_shared)
    for _ in range(3):
        gram.upper()
    assert len(calls) == factors


@pytest.mark.parametrize("H", [torch.tensor([[1.0, 9.0], [9.0, 1.0]]), torch.full((2, 2), torch.nan)])
def test_a_matrix_without_a_factor_is_refused_with_what_to_type(H):
    with pytest.raises(IndefiniteGram, match="--damping") as caught:
        Gram(H).upper()
    assert "2 channels" in str(caught.value)
