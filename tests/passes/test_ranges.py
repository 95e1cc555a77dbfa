"""Ranges of activations: zero is a code, nothing that was asked for is cut off, and mse rounds no worse than minmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.passes.ranges import RANGES, Seen
from tests.compressor.tiny import normal


def seen(*batches: torch.Tensor, share: int = 10_000) -> Seen:
    one = Seen(share, torch.Generator().manual_seed(0))
    for x in batches:
        one(x)
    return one


def rounded(x: torch.Tensor, how) -> torch.Tensor:
    return torch.ops.compressor.round_activation(x, how.kind, how.scale, how.zero, how.group)


def test_minmax_takes_in_all_batches():
    how = seen(torch.tensor([-1.0, 0.5]), torch.tensor([4.1])).rounding("minmax", is_symmetric=False)
    assert (how.scale, how.zero) == (pytest.approx(5.1 / 255), 50)


def test_a_range_is_widened_to_hold_zero():
    how = seen(torch.tensor([3.0, 5.1])).rounding("minmax", is_symmetric=False)
    assert (how.scale, how.zero) == (pytest.approx(0.02), 0)


def test_symmetric_codes_have_zero_in_the_middle():
    how = seen(torch.tensor([-1.27, 0.3])).rounding("minmax", is_symmetric=True)
    assert (how.scale, how.zero) == (pytest.approx(0.01), 128)


def test_percentile_leaves_the_outermost_values_out():
    x = torch.cat([normal(50_000).clamp(-3, 3), torch.tensor([500.0])])
    assert seen(x).rounding("percentile", is_symmetric=False).scale < 0.05
    assert seen(x).rounding("minmax", is_symmetric=False).scale > 1.9


@given(st.integers(0, 100), st.booleans(), st.booleans())
def test_mse_rounds_its_sample_no_worse_than_minmax(seed, is_symmetric, is_rectified):
    x = normal(400, seed=seed) ** 3
    one = seen(x.relu() if is_rectified else x)
    sample = torch.cat(one.parts)
    error = {how: (rounded(sample, one.rounding(how, is_symmetric)) - sample).square().mean() for how in RANGES}
    assert error["mse"] <= error["minmax"] * 1.01


def test_what_never_varies_says_so():
    assert not seen(torch.full((3,), 2.0), torch.full((2,), 2.0)).varies
    assert seen(torch.full((3,), 2.0), torch.zeros(1)).varies
