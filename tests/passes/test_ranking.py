"""Which units stay: per group, together, or with groups of their like; in steps; down to a goal."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compressor.passes.ranking import LEAST, RANKINGS, Ranked, choose_units, least_share


def scores(*values: float) -> Tensor:
    return torch.tensor(values)


def kept(ranking: str, *groups: Ranked) -> list[list[int]]:
    return [keep.nonzero().flatten().tolist() for keep in choose_units(groups, ranking)]


def test_in_layers_each_group_loses_its_own_share_of_the_lowest_scores():
    groups = Ranked(scores(4, 1, 3, 2), 0.5), Ranked(scores(0.1, 0.3, 0.2, 0.4), 0.25)
    assert kept("layer", *groups) == [[0, 2], [1, 2, 3]]


def test_a_share_of_all_empties_a_group_in_layers_which_the_caller_refuses():
    assert kept("layer", Ranked(scores(1, 2), 1.0)) == [[]]


def test_together_the_lowest_scores_of_all_go_and_each_group_keeps_a_tenth():
    groups = Ranked(scores(9, 8, 7, 6), 0.5), Ranked(scores(1, 2, 3, 4), 0.5)
    assert kept("global", *groups) == [[0, 1, 2], [3]]  # one of four is left whatever its score


def test_groups_of_like_structure_are_ranked_with_each_other_only():
    high, low, other = ([9.0, 8, 7, 6], [1.0, 2, 3, 4], [0.4, 0.3, 0.2, 0.1])
    groups = [Ranked(scores(*one), 0.5, like=like) for one, like in ((high, "a"), (low, "a"), (other, "b"))]
    assert kept("isomorphic", *groups) == [[0, 1, 2], [3], [0, 1]]


def test_a_unit_that_costs_more_goes_first_at_the_same_score():
    dear, cheap = Ranked(scores(1, 1, 1, 1), 0.25, cost=3.0), Ranked(scores(1, 1, 1, 1), 0.25, cost=1.0)
    assert kept("global", dear, cheap) == [[0, 1, 2], [0, 1, 2, 3]]


def test_units_come_in_steps_and_a_step_is_not_given_up_for_less_than_half():
    sixteen = torch.arange(16.0)
    for share, n in ((0.5, 8), (0.3, 8), (0.2, 16), (0.7, 8), (0.8, 0)):
        [keep] = choose_units([Ranked(sixteen, share, step=8)], "layer")
        assert int(keep.sum()) == n, share
    [keep] = choose_units([Ranked(torch.arange(12.0), 0.1, step=8)], "layer")
    assert int(keep.sum()) == 8  # 10.8 units are nearer to 8 than to 16


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=24), min_size=1, max_size=5),
    st.floats(0, 0.9),
    st.sampled_from(RANKINGS),
)
def test_the_share_goes_to_within_a_unit_a_group_and_no_group_that_is_ranked_with_others_is_emptied(values, share, how):
    groups = [Ranked(torch.tensor(one), share) for one in values]
    found = choose_units(groups, how)
    for one, keep in zip(groups, found, strict=True):
        assert int(keep.sum()) >= (LEAST * one.units if how != "layer" else 0)
        if keep.any() and not keep.all():
            assert one.scores[keep].min() >= one.scores[~keep].max()
    gone = sum(int((~keep).sum()) for keep in found)
    units = sum(one.units for one in groups)
    assert gone <= share * units + len(groups)


def test_the_least_share_that_meets_a_goal_is_found_by_halving():
    assert least_share(lambda share: (1 - share) ** 2, 0.5, steps=16) == pytest.approx(1 - 0.5**0.5, abs=1e-4)
    assert least_share(lambda share: 1 - share / 2, 0.2) is None


def test_a_share_that_leaves_nothing_is_too_large():
    assert least_share(lambda share: None if share > 0.3 else 1 - share, 0.8, steps=16) == pytest.approx(0.2, abs=1e-4)
    assert least_share(lambda share: None if share > 0.1 else 1 - share, 0.8) is None


def test_a_measure_that_falls_in_steps_is_met_not_missed():
    found = least_share(lambda share: round(4 * (1 - share)) / 4, 0.5)
    assert found is not None
    assert round(4 * (1 - found)) / 4 <= 0.5
