"""An interpolated, modified Kneser-Ney n-gram model: the yardstick that tiny-gpt2 has to beat.

Source: Chen & Goodman, "An empirical study of smoothing techniques for language modeling", 1999, section 4.1.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class KneserNey:
    """P(token | up to order - 1 tokens before it), each order backing off to the next lower one.

    ids: the training text. vocabulary ** order must stay below 2 ** 63: a gram is one integer, its tokens as digits.
    """

    def __init__(self, ids: Ints, order: int, vocabulary: int):
        if vocabulary**order >= 2**63:
            raise ValueError(f"{order} tokens of a vocabulary of {vocabulary} do not fit in 63 bits")
        self.order, self.vocabulary = order, vocabulary
        codes, counts = np.unique(_codes(np.asarray(ids), order, vocabulary), return_counts=True)
        levels = [_Level(codes, counts, vocabulary)]
        for length in range(order - 1, 0, -1):
            # Below the highest order what counts is how many different tokens come before a gram.
            codes, counts = np.unique(codes % vocabulary**length, return_counts=True)
            levels.append(_Level(codes, counts, vocabulary))
        self._levels = levels[::-1]  # order 1 first

    def probabilities(self, windows: Ints) -> Floats:
        """Probability of each token given those before it in its window: (n, length) -> (n, length)."""
        p = np.full(windows.shape, 1 / self.vocabulary)
        for before, level in enumerate(self._levels[: windows.shape[1]]):
            p[:, before:] = level.interpolate(_codes(windows, before + 1, self.vocabulary), p[:, before:])
        return p

    def distribution(self, context: Ints) -> Floats:
        """Probability of every token of the vocabulary after a context (length,)."""
        tokens = np.arange(self.vocabulary)
        windows = np.column_stack([np.tile(context, (self.vocabulary, 1)), tokens])
        return self.probabilities(windows.astype(np.int64))[:, -1]

    def loss(self, windows: Ints) -> float:
        """Mean negative log-likelihood in nats of each window's tokens after the first."""
        return float(-np.log(self.probabilities(windows)[:, 1:]).mean())


class _Level:
    """Counts of the grams of one order, and per context their total and the mass left for the order below."""

    def __init__(self, codes: Ints, counts: Ints, vocabulary: int):
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        self.vocabulary, self.codes, self.kept = vocabulary, codes, counts - discounts
        self.contexts, first = np.unique(codes // vocabulary, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.left = np.add.reduceat(discounts, first)

    def interpolate(self, codes: Ints, lower: Floats) -> Floats:
        """Probabilities at this order, from those of the order below; the same where the context was never seen."""
        at, seen = _find(self.contexts, codes // self.vocabulary)
        gram, counted = _find(self.codes, codes)
        here = (np.where(counted, self.kept[gram], 0.0) + self.left[at] * lower) / self.totals[at]
        return np.where(seen, here, lower)


def _codes(ids: Ints, length: int, vocabulary: int) -> Ints:
    """Every gram of some tokens (..., n) as one integer each: (..., n - length + 1)."""
    last = ids.shape[-1] - length + 1
    code = np.zeros((*ids.shape[:-1], last), dtype=np.int64)
    for shift in range(length):
        code = code * vocabulary + ids[..., shift : shift + last]
    return code


def _find(sorted_codes: Ints, codes: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each code would be, and whether it is there."""
    at = np.minimum(np.searchsorted(sorted_codes, codes), len(sorted_codes) - 1)
    return at, sorted_codes[at] == codes


def _discounts(counts: Ints) -> Floats:
    """What is taken off a count of 0, 1, 2, and 3 or more."""
    n1, n2, n3, n4 = (float((counts == times).sum()) for times in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 0.5, 0.5])  # too little text to estimate from
    y = n1 / (n1 + 2 * n2)
    estimated = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return estimated.clip(0.0, [0.0, 1.0, 2.0, 3.0])
