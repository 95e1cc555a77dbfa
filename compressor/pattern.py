"""Which share of a weight becomes zero, and how arranged: `2:4`, or a ratio like `0.5`. Knows no arrays."""

import re
from dataclasses import dataclass

from compressor.errors import RecipeError

HINT = "2:4 keeps 2 of every 4 weights; 0.5 removes half of them"


@dataclass(frozen=True)
class NM:
    """At most n non-zero of every m consecutive weights along the contracted axis, 0 < n < m."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise _impossible(f"{self.n}:{self.m}", "N:M needs 0 < N < M: at most N non-zero of every M")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """The share of weights that are zero."""
        return 1 - self.n / self.m


@dataclass(frozen=True)
class Ratio:
    """A share of all weights, anywhere, 0 < sparsity < 1."""

    sparsity: float

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise _impossible(str(self), "a ratio lies between 0 and 1, both excluded")

    def __str__(self) -> str:
        return repr(float(self.sparsity))


Pattern = NM | Ratio


def parse_pattern(text: str) -> Pattern:
    """The pattern that is spelled `2:4`, `0.5` or `50%`. Raises RecipeError."""
    text = text.strip()
    if groups := re.fullmatch(r"(\d{1,4})\s*:\s*(\d{1,4})", text, re.ASCII):
        return NM(int(groups[1]), int(groups[2]))
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise _impossible(text, "neither N:M nor a ratio") from None
    return Ratio(number / 100 if text.endswith("%") else number)


def _impossible(text: str, found: str) -> RecipeError:
    return RecipeError(f"the pattern cannot be {text!r}", found=found, hint=HINT)
