"""The arrays that training is made of: masks, schedules, orders, losses and augmentation, on values checked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.passes.augment import augment, crop, flip
from compressor.passes.held import Held
from compressor.passes.objectives import divergence, share
from compressor.passes.order import Order, Plan, mixed, n_held_out
from compressor.passes.trained import Trained, falling, groups, set_rates


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# *** masks ***


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0]), min_size=1, max_size=9), st.integers(0, 10**6))
def test_whatever_becomes_of_the_leaf_the_zeros_stay_and_nothing_flows_back_to_them(values, seed):
    x = torch.tensor(values)
    one = Trained.of(x, holds_zeros=True)
    one.leaf.data = torch.randn(x.shape, generator=seeded(seed)) * 1e6
    one.value().square().sum().backward()
    assert (one.value()[x == 0] == 0).all()
    assert (one.leaf.grad[x == 0] == 0).all()
    assert (one.value()[x != 0] != 0).all()


def test_a_tensor_that_holds_no_zeros_may_leave_them():
    one = Trained.of(torch.zeros(3), holds_zeros=False)
    one.leaf.data += 1
    assert one.value().tolist() == [1, 1, 1]


def test_a_first_step_is_a_share_of_what_a_tensor_holds_and_of_a_typical_matrix_where_it_holds_nothing():
    matrix = Trained.of(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), holds_zeros=True)
    bias = Trained.of(torch.zeros(2), holds_zeros=False)
    made = groups([bias, matrix], 0.1, weight_decay=0.5)
    assert [round(group["lr"], 6) for group in made] == [0.3, 0.3]
    optimizer = torch.optim.AdamW(made)
    set_rates(optimizer, 0.5)
    assert [round(group["lr"], 6) for group in optimizer.param_groups] == [0.15, 0.15]


def test_steps_rise_over_the_warm_up_and_fall_along_a_cosine():
    assert [falling(step, 10, 2) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert falling(6, 10, 2) == pytest.approx(0.5)
    assert falling(9, 10, 2) == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert falling(0, 1) == 1.0


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.lists(st.booleans(), min_size=40, max_size=40))
def test_what_was_zero_must_be_zero_and_what_was_not_may_be(before, after):
    W, V = torch.tensor(before).float(), torch.tensor(after[: len(before)]).float()
    assert Held.of(W).is_kept_by(V) == bool((V[W == 0] == 0).all())
    assert not Held.of(W).is_kept_by(V[None])


# *** orders ***


def plan(batch: int, held_out: float = 0.25, seed: int = 0) -> Plan:
    return Plan(10, batch, seed, warmup=0.1, held_out=held_out, clip=1.0, checks=5, patience=0)


@given(st.integers(2, 60), st.integers(1, 70), st.integers(0, 3))
def test_every_epoch_visits_samples_once_and_none_that_are_held_out(n, batch, seed):
    order = Order(n, plan(batch, seed=seed))
    rows = [order.rows(step) for step in range(order.per_epoch)]
    visited = [row for some in rows for row in some]
    assert len(visited) == len(set(visited)) > len(order.learned) - order.batch
    assert set(visited) <= set(order.learned)
    assert sorted([*order.learned, *order.held]) == list(range(n))
    assert order.rows(0) == rows[0], "a step is what it is, whenever it is asked for"


def test_epochs_differ_in_their_order():
    order = Order(40, plan(10))
    assert order.rows(0) != order.rows(order.per_epoch)


def test_at_least_one_sample_is_held_out_and_no_more_than_tell_the_loss():
    assert [n_held_out(n, 0.1) for n in (2, 50, 50_000)] == [1, 5, 1000]


def test_the_samples_held_out_are_asked_evenly_and_at_the_end():
    assert [step for step in range(1, 11) if plan(1).is_due(step)] == [2, 4, 6, 8, 10]


def test_seeds_of_several_uses_differ():
    assert len({mixed(seed, a, b) for seed in range(3) for a in range(10) for b in range(3)}) == 90


# *** losses ***


def test_divergence_is_that_of_the_softened_classes_and_zero_of_equal_ones():
    logits, wanted = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3.0), 0.0]])
    softened = torch.tensor([0.75, 0.25])  # at a temperature of 2
    expected = 4 * (softened * (softened / 0.5).log()).sum()
    assert divergence(logits, wanted, 2.0).item() == pytest.approx(expected.item(), rel=1e-6)
    assert divergence(wanted, wanted, 2.0).item() == 0.0
    tokens = torch.randn(2, 3, 5)
    assert divergence(tokens, tokens + 7, 1.0).item() == pytest.approx(0.0, abs=1e-6)


def test_squared_error_is_a_share_of_what_is_wanted():
    assert share(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])).item() == 5 / 4
    assert math.isfinite(share(torch.ones(2), torch.zeros(2)).item())


# *** augmentation ***


def test_a_crop_shifts_each_image_by_up_to_an_eighth_and_brings_in_zeros():
    x = torch.ones(200, 1, 8, 16)
    cut = crop(x, seeded())
    assert cut.shape == x.shape
    kept = cut.sum((1, 2, 3)).unique().tolist()
    assert kept == sorted({(8 - i) * (16 - j) for i in (0, 1) for j in (0, 1, 2)})


def test_a_flip_mirrors_about_half_and_leaves_the_others():
    x = torch.arange(4.0).expand(1000, 1, 1, 4)
    flipped = flip(x, seeded())
    is_mirrored = flipped[:, 0, 0, 0] == 3
    assert 400 < is_mirrored.sum() < 600
    assert torch.equal(flipped[is_mirrored], x[is_mirrored].flip(-1))
    assert torch.equal(flipped[~is_mirrored], x[~is_mirrored])


def test_only_what_is_asked_for_is_done():
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(augment(x, (), seeded()), x)
    assert torch.equal(augment(x, ("flip",), seeded(1)), flip(x, seeded(1)))
