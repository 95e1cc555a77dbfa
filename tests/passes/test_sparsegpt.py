import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import UserError
from compressor.passes.damping import dampen
from compressor.passes.gram import Gram, IndefiniteGram
from compressor.passes.masks import nm_fraction, nm_keep
from compressor.passes.refit import relative_error
from compressor.passes.sparsegpt import sparsegpt
from compressor.pattern import NM, Ratio, parse_pattern
from tests.passes.reference import all_keeps, layer, normal, plain_sparsegpt, worst_choice

PATTERNS = ["2:4", "1:4", "3:4", "4:8", "1:3", "0.5", "0.7"]
SHAPES = [(48, 384), (96, 120), (7, 264), (1, 24), (200, 144)]


def problem(m, d, seed=0, lam=0.01, dtype=torch.float32):
    W, X = layer(m, d, 4 * d, seed)
    return W.to(dtype), dampen(X.T @ X / len(X), lam).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_mask_and_weights_are_those_of_the_paper(shape, pattern):
    W, H = problem(*shape, seed=sum(shape))
    V, keep = sparsegpt(W, H, parse_pattern(pattern))
    V_plain, keep_plain = plain_sparsegpt(W, H, parse_pattern(pattern))
    assert torch.equal(keep, keep_plain)
    torch.testing.assert_close(V, V_plain, rtol=1e-3, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(1, 20), st.integers(1, 14), st.integers(0, 10**6))
def test_any_shape_gives_the_paper_in_double_precision(pattern, m, groups, seed):
    W, H = problem(m, 24 * groups, seed, dtype=torch.float64)
    V, keep = sparsegpt(W, H, parse_pattern(pattern))
    V_plain, keep_plain = plain_sparsegpt(W, H, parse_pattern(pattern))
    assert torch.equal(keep, keep_plain)
    torch.testing.assert_close(V, V_plain, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_choice_in_single_precision_is_the_papers_up_to_rounding(pattern):
    W, H = problem(256, 384, seed=5)
    _, keep = sparsegpt(W, H, parse_pattern(pattern))
    assert worst_choice(W, H, parse_pattern(pattern), keep) < 1e-4


@pytest.mark.parametrize("block", [4, 24, 32, 100, 1000])
def test_the_block_size_leaves_an_nm_mask_alone(block):
    W, H = problem(32, 240)
    V, keep = sparsegpt(W, H, NM(2, 4), block=block)
    V_default, keep_default = sparsegpt(W, H, NM(2, 4))
    assert torch.equal(keep, keep_default)
    torch.testing.assert_close(V, V_default, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pattern", ["2:4", "0.6"])
def test_a_block_size_that_fits_badly_gives_the_paper_at_the_same_size(pattern):
    W, H = problem(16, 200, dtype=torch.float64)
    _, keep = sparsegpt(W, H, parse_pattern(pattern), block=96)
    assert torch.equal(keep, plain_sparsegpt(W, H, parse_pattern(pattern), block=96)[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 300), st.floats(0.01, 0.99))
def test_a_ratio_is_exact_over_the_whole_matrix(m, d, sparsity):
    V, keep = sparsegpt(normal(m, d), torch.eye(d), Ratio(sparsity))
    assert int((~keep).sum()) == round(sparsity * m * d)
    assert not V[~keep].any()


def test_a_ratio_is_the_same_in_every_block_of_128():
    W, H = problem(40, 300)
    _, keep = sparsegpt(W, H, Ratio(0.7))
    counts = [int((~part).sum()) for part in keep.split(128, 1)]
    assert all(abs(count - 0.7 * 40 * width) <= 1 for count, width in zip(counts, [128, 128, 44], strict=True))


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8)])
def test_groups_run_along_the_columns_and_dropped_weights_are_exactly_zero(pattern):
    W, H = problem(24, 96)
    V, keep = sparsegpt(W, H, pattern)
    assert nm_fraction(V, pattern.n, pattern.m) == (V.numel() // pattern.m,) * 2
    assert nm_fraction(keep, pattern.n, pattern.m) == (V.numel() // pattern.m,) * 2
    assert int(keep.sum()) == V.numel() * pattern.n // pattern.m
    assert torch.equal(V != 0, keep)


def test_uncorrelated_inputs_need_no_compensation_and_take_the_best_mask_of_all():
    W, energy = normal(6, 4), torch.tensor([1.0, 3.0, 0.2, 5.0])
    V, keep = sparsegpt(W, energy.diag(), NM(2, 4))
    error = (W[:, None].square() * energy * ~all_keeps(2, 4)).sum(-1)
    assert torch.equal(keep, all_keeps(2, 4)[error.argmin(1)])
    torch.testing.assert_close(V, W * keep)


def test_compensation_beats_the_same_mask_without_it():
    W, H = problem(64, 128)
    V, keep = sparsegpt(W, H, NM(2, 4))
    wanda = nm_keep(W.abs() * H.diagonal().sqrt(), 2, 4)
    assert relative_error(V, W, H) < 0.8 * relative_error(W * wanda, W, H)
    assert relative_error(V, W, H) < 0.8 * relative_error(W * keep, W, H)


@pytest.mark.parametrize("pattern", ["2:4", "0.6"])
def test_its_own_mask_given_back_gives_the_same_weights(pattern):
    W, H = problem(32, 200)
    V, keep = sparsegpt(W, H, parse_pattern(pattern))
    V_given, keep_given = sparsegpt(W, H, None, keep=keep)
    assert torch.equal(keep_given, keep)
    torch.testing.assert_close(V_given, V, rtol=1e-4, atol=1e-4)


def test_a_given_mask_is_obeyed_and_compensated():
    W, H = problem(32, 130)
    keep = W.abs() > W.abs().median()
    V, same = sparsegpt(W, H, NM(2, 4), keep=keep)
    assert torch.equal(same, keep)
    assert torch.equal(V != 0, keep)
    assert relative_error(V, W, H) < relative_error(W * keep, W, H)


def test_ties_keep_the_lower_index():
    _, keep = sparsegpt(torch.ones(3, 8), torch.eye(8), NM(2, 4))
    assert keep.tolist() == [[True, True, False, False] * 2] * 3


def test_twice_gives_the_same_bits_and_arguments_are_left_alone():
    W, H = problem(32, 256)
    W_before, H_before = W.clone(), H.clone()
    first, second = sparsegpt(W, H, NM(2, 4)), sparsegpt(W, H, NM(2, 4))
    assert torch.equal(first[0], second[0])
    assert torch.equal(W, W_before)
    assert torch.equal(H, H_before)


def test_the_factor_rebuilds_the_matrix_it_came_from():
    _, H = problem(1, 96, dtype=torch.float64)
    R = Gram(H).upper()
    assert torch.equal(R, R.triu())
    torch.testing.assert_close(R @ R.T, H)


@pytest.mark.parametrize("H", [-torch.eye(8), torch.ones(8, 8), torch.full((8, 8), torch.nan)])
def test_refuses_a_gram_matrix_that_is_not_positive_definite_and_says_what_to_raise(H):
    with pytest.raises(IndefiniteGram, match="--damping") as caught:
        sparsegpt(normal(4, 8), H, NM(2, 4))
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ArithmeticError)


def test_refuses_columns_that_do_not_fill_groups():
    with pytest.raises(ValueError, match="6 columns into groups of 4"):
        sparsegpt(normal(4, 6), torch.eye(6), NM(2, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_weights_that_are_not_finite(bad):
    with pytest.raises(ValueError, match="not finite"):
        sparsegpt(torch.full((4, 8), bad), torch.eye(8), NM(2, 4))


def test_refuses_to_guess_a_pattern():
    with pytest.raises(ValueError, match="pattern or a mask"):
        sparsegpt(normal(4, 8), torch.eye(8), None)
