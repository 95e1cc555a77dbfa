"""How much of what is removed: `0.5` of every kind of channel, or `mlp=0.5,heads=0.25`."""

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.errors import RecipeError
from compressor.registry import unknown

KINDS = ("mlp", "heads", "conv", "width", "other")
HINT = "--channels 0.5, or --channels mlp=0.5,heads=0.25"


@dataclass(frozen=True)
class Amounts:
    """Shares of the units to remove, between 0 and 1: of_all of every kind, or by_kind of those that were named."""

    of_all: float | None
    by_kind: Mapping[str, float]

    @staticmethod
    def parse(text: str) -> "Amounts":
        """`0.5`, `50%`, or `mlp=0.5,heads=25%`. Raises RecipeError."""
        if "=" not in text:
            return Amounts(_share(text, text), {})
        pairs = [part.partition("=")[::2] for part in text.split(",")]
        found: dict[str, float] = {}
        for kind, share in pairs:
            if kind.strip() not in KINDS:
                raise unknown("kind of channels", kind.strip(), KINDS)
            if kind.strip() in found:
                raise RecipeError(f"--channels names {kind.strip()} twice", found=text)
            found[kind.strip()] = _share(share, text)
        return Amounts(None, found)

    def of(self, kind: str) -> float:
        """The share to remove of a kind; 0 where none is asked for."""
        return self.by_kind.get(kind, 0.0) if self.of_all is None else self.of_all

    def names(self, kind: str) -> bool:
        """Whether the kind was named by itself."""
        return kind in self.by_kind

    def __str__(self) -> str:
        if self.of_all is not None:
            return f"{self.of_all:g}"
        return ",".join(f"{kind}={share:g}" for kind, share in self.by_kind.items())


def _share(text: str, whole: str) -> float:
    words = text.strip()
    try:
        share = float(words.removesuffix("%")) / (100 if words.endswith("%") else 1)
    except ValueError:
        raise RecipeError(f"channels cannot be {whole!r}", hint=HINT) from None
    if not 0 < share < 1:
        found = "a layer without channels" if share == 1 else f"{words} of them"
        raise RecipeError(f"channels cannot be {whole!r}", found=found, hint=HINT)
    return share
