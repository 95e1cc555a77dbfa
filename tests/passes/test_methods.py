"""Which method `auto` takes, by shape alone."""

import pytest
import torch

from compressor.passes.admm import admm
from compressor.passes.damping import dampen
from compressor.passes.methods import is_admm_cheap, method_of
from compressor.passes.refit import conjugate_gradients, squared_error
from compressor.passes.sparsegpt import sparsegpt
from compressor.pattern import NM
from tests.passes.reference import layer


@pytest.mark.parametrize(("m", "d", "is_cheap"), [(256, 1024, True), (64, 576, True), (4096, 4096, False)])
def test_admm_is_taken_where_it_costs_no_more_than_a_plain_sparsegpt(m, d, is_cheap):
    assert is_admm_cheap(m, d, 12) is is_cheap


def test_more_iterations_are_too_dear_for_a_shape_that_few_suit():
    assert is_admm_cheap(256, 1024, 12)
    assert not is_admm_cheap(256, 1024, 96)


@pytest.mark.parametrize(("iterations", "other"), [(12, admm), (10_000, sparsegpt)])
def test_auto_gives_what_the_method_it_takes_gives(iterations, other):
    W, X = layer(16, 32, 256)
    H = dampen(X.T @ X / len(X), 0.01)
    V, keep = method_of("auto", iterations)(W, H, NM(2, 4))
    wanted = other(W, H, NM(2, 4), **({"iterations": iterations} if other is admm else {}))
    assert torch.equal(V, wanted[0])
    assert torch.equal(keep, wanted[1])


def test_the_schedule_suits_correlated_inputs():
    """Twelve iterations leave less error than SparseGPT's mask with its weights refitted, on channels that repeat."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(2048, 8, generator=g) @ torch.randn(8, 64, generator=g) + 0.2 * torch.randn(2048, 64, generator=g)
    W, H = torch.randn(48, 64, generator=g), dampen(X.T @ X / len(X), 0.01)
    V, keep = sparsegpt(W, H, NM(2, 4))
    theirs = squared_error(conjugate_gradients(V, keep, W, H, 10), W, H)
    assert squared_error(admm(W, H, NM(2, 4), iterations=12)[0], W, H) < theirs
