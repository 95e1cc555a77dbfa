import pytest
import torch

from compressor.passes.damping import DEAD, choose_lambda, dampen
from tests.passes.reference import layer


def test_each_channel_is_damped_by_its_own_energy():
    H = torch.tensor([[4.0, 1.0], [1.0, 100.0]])
    torch.testing.assert_close(dampen(H, 0.1), torch.tensor([[4.4, 1.0], [1.0, 110.0]]))
    assert H.diagonal().tolist() == [4, 100]


def test_a_dead_channel_is_uncoupled_and_weighs_less_than_any_other():
    H = torch.tensor([[4.0, 1e-6, 1.0], [1e-6, 1e-11, 0.0], [1.0, 0.0, 2.0]])
    expected = [[6, 0, 1], [0, DEAD * 2, 0], [1, 0, 3]]
    torch.testing.assert_close(dampen(H, 0.5), torch.tensor(expected), rtol=1e-6, atol=0)


def test_silence_becomes_the_identity():
    assert torch.equal(dampen(torch.zeros(3, 3), 0.01), torch.eye(3))


def test_fewer_rows_than_channels_are_made_positive_definite():
    _, X = layer(1, 64, 16)
    torch.linalg.cholesky(dampen(X.T @ X / 16, 1.0))


@pytest.mark.parametrize(("d", "n", "expected"), [(768, 768_000, 0.01), (768, 7680, 0.1), (768, 96, 1), (768, 0, 1)])
def test_damping_falls_with_the_rows_seen(d, n, expected):
    assert choose_lambda(d, n) == pytest.approx(expected)
