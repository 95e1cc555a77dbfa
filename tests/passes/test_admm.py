from itertools import combinations, product

import pytest
import torch

from compressor.passes.admm import GROWTH, RELAXATION, RHO, _penalties, admm
from compressor.passes.damping import dampen
from compressor.passes.gram import IndefiniteGram
from compressor.passes.masks import nm_fraction
from compressor.passes.refit import conjugate_gradients, squared_error
from compressor.passes.sparsegpt import sparsegpt
from compressor.pattern import NM, Ratio, parse_pattern
from tests.passes.reference import layer


def problem(m=48, d=64, n=1024, seed=0):
    W, X = layer(m, d, n, seed=seed)
    return W, dampen(X.T @ X / n, 0.01)


def refitted(V, keep, W, H):
    return squared_error(conjugate_gradients(V, keep, W, H, 50), W, H)


@pytest.mark.parametrize(("text", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_every_group_keeps_exactly_n_of_m_and_zeros_are_exact(text, n, m):
    W, H = problem()
    V, keep = admm(W, H, parse_pattern(text))
    assert (keep.reshape(-1, m).sum(1) == n).all()
    assert torch.equal(V != 0, keep)
    assert nm_fraction(V, n, m)[0] == nm_fraction(V, n, m)[1]


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_a_ratio_is_exact_over_the_whole_matrix(sparsity):
    W, H = problem()
    V, _ = admm(W, H, Ratio(sparsity))
    assert int((V == 0).sum()) == round(sparsity * W.numel())


@pytest.mark.parametrize("pattern", [NM(2, 4), Ratio(0.7)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_its_mask_is_better_than_that_of_sparsegpt(pattern, seed):
    W, H = problem(seed=seed)
    ours = refitted(*admm(W, H, pattern), W, H)
    theirs = refitted(*sparsegpt(W, H, pattern), W, H)
    assert ours < theirs


def test_tiny_groups_come_near_the_best_of_all_masks():
    W, H = problem(m=6, d=8)
    V, keep = admm(W, H, NM(2, 4), iterations=48)
    found = [squared_error(row[None], w[None], H) for row, w in zip(refit_rows(V, keep, W, H), W, strict=True)]
    best = [best_of_all_masks(w, H) for w in W]
    assert sum(found) < 1.1 * sum(best)


def refit_rows(V, keep, W, H):
    return conjugate_gradients(V, keep, W, H, 50)


def best_of_all_masks(w, H):
    """Exact least squares on every 2:4 mask of one row of eight."""
    pairs = list(combinations(range(4), 2))
    return min(error_on(w, H, [*first, *(4 + i for i in second)]) for first, second in product(pairs, pairs))


def error_on(w, H, kept):
    H, w = H.double(), w.double()
    v = torch.zeros_like(w)
    v[kept] = torch.linalg.solve(H[kept][:, kept], (w @ H)[kept])
    return float((v - w) @ H @ (v - w))


def test_more_iterations_are_better():
    W, H = problem()
    few, many = (refitted(*admm(W, H, NM(2, 4), iterations=n), W, H) for n in (3, 48))
    assert many < few


@pytest.mark.parametrize("pattern", [NM(2, 4), Ratio(0.7)], ids=str)
def test_going_past_each_iterate_leaves_less_error_on_correlated_inputs(pattern, monkeypatch):
    problems, errors = [correlated(seed) for seed in range(3)], {}
    for relaxation in (1.0, RELAXATION):
        monkeypatch.setattr("compressor.passes.admm.RELAXATION", relaxation)
        errors[relaxation] = sum(refitted(*admm(W, H, pattern, iterations=9), W, H) for W, H in problems)
    assert errors[RELAXATION] < 0.97 * errors[1.0]


def correlated(seed, m=48, d=64, n=1024):
    """Inputs whose energy falls from direction to direction, as those of trained layers do."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g) / torch.arange(1, d + 1) @ torch.randn(d, d, generator=g)
    return torch.randn(m, d, generator=g), dampen(X.T @ X / n, 0.01)


def test_penalties_grow_to_the_last_and_few_begin_later():
    assert _penalties(1) == [RHO[1]]
    assert _penalties(3) == pytest.approx([RHO[1] / GROWTH**2, RHO[1] / GROWTH, RHO[1]])
    many = _penalties(16)
    assert many == sorted(many)
    assert (many[0], many[-1]) == pytest.approx(RHO)


def test_the_scale_of_a_channel_does_not_matter():
    W, H = problem()
    scale = torch.logspace(-2, 2, W.shape[1])
    _, keep = admm(W, H, NM(2, 4))
    _, scaled = admm(W / scale, H * torch.outer(scale, scale), NM(2, 4))
    assert (keep != scaled).float().mean() < 0.01


def test_repeats_bit_for_bit_and_leaves_its_arguments_alone():
    W, H = problem()
    before = W.clone(), H.clone()
    first, second = admm(W, H, NM(2, 4))[0], admm(W, H, NM(2, 4))[0]
    assert torch.equal(first, second)
    assert torch.equal(W, before[0])
    assert torch.equal(H, before[1])


def test_a_gram_matrix_that_is_not_positive_definite_is_refused():
    W, H = torch.ones(2, 4), torch.eye(4)
    H[0, 1] = H[1, 0] = 9
    with pytest.raises(IndefiniteGram, match="not positive definite"):
        admm(W, H, NM(2, 4))
