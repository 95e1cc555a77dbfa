"""Grids: symmetric, positive, and no worse than the plain one."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.passes.grids import grid
from tests.compressor.tiny import normal


def test_a_row_that_lies_on_the_plain_grid_gets_that_grid():
    W = torch.tensor([[[7.0, -3, 1, 0]]])
    assert torch.equal(grid(W, largest=7, group=0), torch.ones(1, 1, 1))


def test_a_row_of_zeros_has_a_positive_scale():
    assert (grid(torch.zeros(1, 2, 32), largest=7, group=16) == 1).all()


def test_each_group_of_a_row_has_its_own_scale():
    W = torch.cat([torch.full((1, 1, 16), 7.0), torch.full((1, 1, 16), 0.7)], dim=-1)
    torch.testing.assert_close(grid(W, largest=7, group=16), torch.tensor([[[1.0, 0.1]]]))


def test_an_input_that_is_silent_does_not_stretch_the_grid():
    W, H = torch.tensor([[[14.0, 7, 3, 1]]]), torch.diag(torch.tensor([0.0, 1, 1, 1]))[None]
    assert grid(W, 7, 0, H).item() == 1.0
    assert grid(W, 7, 0).item() > 1.3


def test_a_huge_weight_of_a_quiet_input_does_not_cost_all_others_their_codes():
    W = torch.cat([torch.full((1, 1, 1), 80.0), normal(1, 1, 31)], dim=-1)
    H = torch.diag(torch.tensor([1e-6] + [1.0] * 31))[None]
    S = grid(W, 64, 0, H)
    rounded = (W / S).round().clamp(-64, 64) * S
    assert (rounded - W)[..., 1:].abs().max() < 0.03


@given(st.integers(0, 1000), st.sampled_from([7, 64, 127]), st.sampled_from([0, 16]))
def test_no_grid_costs_more_than_the_one_up_to_the_largest_weight(seed, largest, group):
    W = normal(1, 3, 32, seed=seed)

    def error(scale):
        S = scale.repeat_interleave(32 // scale.shape[-1], -1)
        return ((W / S).round().clamp(-largest, largest) * S - W).square().sum()

    plain = W.unflatten(-1, (-1, group or 32)).abs().amax(-1) / largest
    assert error(grid(W, largest, group)) <= error(plain) * (1 + 1e-5)
