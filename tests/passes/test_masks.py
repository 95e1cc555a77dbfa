import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.passes.masks import IN_CACHE, global_ratio_keep, nm_fraction, nm_keep, nth_highest, ratio_keep
from tests.passes.reference import all_keeps

relaxed = settings(deadline=None)
seeds = st.integers(0, 2**32 - 1)
sparsities = st.floats(0, 1)


def scores(*shape: int, seed: int, levels: int | None = None) -> Tensor:
    """Random scores; of a few levels only, where ties are wanted."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g) if levels is None else torch.randint(levels, shape, generator=g).float()


@st.composite
def nm(draw: st.DrawFn) -> tuple[int, int]:
    m = draw(st.integers(2, 8))
    return draw(st.integers(1, m - 1)), m


@relaxed
@given(nm(), st.integers(0, 5), st.integers(1, 6), st.sampled_from([None, 1, 3]), seeds)
def test_every_group_keeps_exactly_n(pattern, rows, groups, levels, seed):
    n, m = pattern
    keep = nm_keep(scores(rows, 2, groups * m, seed=seed, levels=levels), n, m)
    assert keep.shape == (rows, 2, groups * m)
    assert keep.dtype == torch.bool
    assert (keep.unflatten(-1, (groups, m)).sum(-1) == n).all()


@relaxed
@given(nm(), seeds)
def test_a_group_keeps_the_highest_total_of_all_ways(pattern, seed):
    n, m = pattern
    score = scores(7, m, seed=seed)
    best = (score[:, None] * all_keeps(n, m)).sum(-1).amax(1)
    torch.testing.assert_close((score * nm_keep(score, n, m)).sum(-1), best)


def test_a_group_runs_along_the_last_axis():
    score = torch.tensor([[9.0, 8.0, 1.0, 2.0], [7.0, 1.0, 6.0, 2.0]])
    assert nm_keep(score, 2, 4).tolist() == [[True, True, False, False], [True, False, True, False]]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_equal_scores_keep_the_lower_index(n):
    assert nm_keep(torch.zeros(3, 8), n, 4).reshape(-1, 4).tolist() == [[i < n for i in range(4)]] * 6


@relaxed
@given(nm(), st.integers(1, 4), seeds)
def test_ties_of_a_group_are_broken_as_a_stable_sort_does(pattern, levels, seed):
    n, m = pattern
    score = scores(5, 3 * m, seed=seed, levels=levels)
    order = score.unflatten(-1, (3, m)).argsort(dim=-1, descending=True, stable=True)[..., :n]
    expected = torch.zeros(5, 3, m, dtype=torch.bool).scatter(-1, order, True).flatten(1)
    assert torch.equal(nm_keep(score, n, m), expected)


def test_infinite_scores_are_ranked():
    score = torch.tensor([torch.inf, -torch.inf, 0, torch.inf])
    assert nm_keep(score, 2, 4).tolist() == [True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_scores_of_any_type_are_ranked(dtype):
    assert nm_keep(torch.tensor([3, 1, 2, 4], dtype=dtype), 2, 4).tolist() == [True, False, False, True]


def test_a_view_with_strides_is_ranked_as_its_copy():
    score = scores(8, 12, seed=0)
    assert torch.equal(nm_keep(score.T, 2, 4), nm_keep(score.T.contiguous(), 2, 4))


def test_a_matrix_of_many_groups_is_ranked_whole():
    score = scores(IN_CACHE + 1, 4, seed=0)
    assert torch.equal(nm_keep(score, 2, 4), score >= score.topk(2).values[:, 1:])


def test_refuses_an_axis_that_is_not_a_multiple_of_m():
    with pytest.raises(ValueError, match="length 6 into groups of 4"):
        nm_keep(torch.zeros(4, 6), 2, 4)


@pytest.mark.parametrize(
    "keep", [lambda s: nm_keep(s, 2, 4), lambda s: ratio_keep(s, 0.5), lambda s: ratio_keep(s, 0.0)]
)
def test_refuses_a_score_that_is_nan(keep):
    with pytest.raises(ValueError, match="NaN: 1 of 8"):
        keep(torch.tensor([1, 2, 3, torch.nan, 5, 6, 7, 8]))


@relaxed
@given(st.integers(1, 9), st.integers(1, 9), sparsities, st.sampled_from([None, 1, 2, 5]), seeds)
def test_a_ratio_drops_the_exact_count(m, d, sparsity, levels, seed):
    keep = ratio_keep(scores(m, d, seed=seed, levels=levels), sparsity)
    assert keep.shape == (m, d)
    assert int((~keep).sum()) == round(sparsity * m * d)


@relaxed
@given(sparsities, st.sampled_from([None, 1, 2, 5]), seeds)
def test_a_ratio_drops_what_a_stable_sort_puts_last(sparsity, levels, seed):
    score = scores(6, 7, seed=seed, levels=levels)
    keep = ratio_keep(score, sparsity)
    order = score.flatten().argsort(descending=True, stable=True)
    assert keep.flatten()[order].tolist() == sorted(keep.flatten().tolist(), reverse=True)


@relaxed
@given(st.lists(st.integers(0, 20), max_size=5), sparsities, st.sampled_from([None, 2]), seeds)
def test_a_global_ratio_is_exact_over_all_and_ranks_across_matrices(sizes, sparsity, levels, seed):
    parts = [scores(size, 2, seed=seed + i, levels=levels) for i, size in enumerate(sizes)]
    keeps = global_ratio_keep(parts, sparsity)
    assert [keep.shape for keep in keeps] == [part.shape for part in parts]
    if sum(sizes):
        together = ratio_keep(torch.cat(parts), sparsity)
        assert torch.equal(torch.cat(keeps), together)
        assert int((~together).sum()) == round(sparsity * 2 * sum(sizes))


@relaxed
@given(nm(), seeds)
def test_what_was_masked_is_counted_as_good(pattern, seed):
    n, m = pattern
    W = scores(4, 3 * m, seed=seed)
    assert nm_fraction(W * nm_keep(W, n, m), n, m) == (12, 12)
    assert nm_fraction(W, n, m) == (0, 12)


def test_a_group_with_fewer_than_n_is_good_and_one_with_more_is_not():
    assert nm_fraction(torch.tensor([[0, 0, 0, 1, 1, 1, 0, 1.0], [0, 0, 0, 0, 1, 0, 0, 1]]), 2, 4) == (3, 4)


def test_refuses_to_count_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="groups of 4"):
        nm_fraction(torch.zeros(4, 6), 2, 4)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (4, 8), (2, 2)])
def test_the_nth_highest_is_that_of_a_sort(n, m):
    x = torch.randn(5, m, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nth_highest(x, n), x.sort(1, descending=True).values[:, n - 1])
