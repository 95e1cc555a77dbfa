"""What both models make of the same held-out samples."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any


@dataclass(frozen=True)
class Said:
    """One model's answer. same: its beginning that the dense model says too; rest: what follows; is_right: where the
    wanted answer is a class."""

    whose: str
    same: str
    rest: str
    share: str
    is_right: bool | None


@dataclass(frozen=True)
class Sample:
    """A question, what was wanted, and what each of the two said."""

    kind: str
    question: str
    wanted: str
    said: tuple[Said, ...]


def samples(exhibits: Mapping[str, Any]) -> list[Sample]:
    return [
        Sample(
            one["kind"], one["question"], one["wanted"],
            tuple(_said(whose, one[whose], one["dense"]["text"], one["wanted"]) for whose in ("dense", "artifact")),
        )
        for one in exhibits["samples"]
    ]  # fmt: skip


def agreement(found: Sequence[Sample]) -> str:
    """How often the artifact says what the dense model says, in a sentence."""
    same = sum(not one.said[1].rest for one in found)
    return f"The artifact says the same as the dense model on {same} of {len(found)}."


def _said(whose: str, answer: Mapping[str, Any], dense: str, wanted: str) -> Said:
    text, share, dense = _close(answer["text"]), answer["share"], _close(dense)
    same = text if whose == "dense" else _common_words(text, dense)
    is_class = isinstance(share, int | float)
    return Said(
        whose, same, text[len(same) :], f"{100 * share:.0f} %" if is_class else "", text == wanted if is_class else None
    )


def _close(text: str) -> str:
    """Without empty lines, which small models like to write."""
    return re.sub(r"\n\s*\n", "\n", text)


def _common_words(text: str, other: str) -> str:
    """The words at the beginning that both share."""
    words = zip(re.findall(r"\s*\S+|\s+$", text), re.findall(r"\s*\S+|\s+$", other), strict=False)
    return "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], words))
