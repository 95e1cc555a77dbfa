from functools import partial

import pytest
import torch

from compressor.passes.trials import best_of


def tried(errors: list[float]) -> tuple[int, str, list[float]]:
    """Which of several trials is kept, what it returned, and what it left in the tensor."""
    x, left = torch.zeros(2), iter(errors)

    def trial(position: int) -> str:
        x.add_(position + 1)  # on what is there: a trial must find the tensor as it was
        return f"trial {position}"

    trials = [partial(trial, position) for position in range(len(errors))]
    best, returned, _ = best_of(trials, lambda _: next(left), [x])
    return best, returned, x.tolist()


@pytest.mark.parametrize(
    ("errors", "best"), [([1.0, 2.0], 0), ([2.0, 1.0], 1), ([1.0, 1.0], 0), ([3.0, 1.0, 2.0], 1), ([5.0], 0)]
)
def test_the_trial_of_least_error_stays_and_of_equal_ones_the_first(errors, best):
    assert tried(errors) == (best, f"trial {best}", [best + 1.0] * 2)
