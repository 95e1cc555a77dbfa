"""Samples made only when asked for, and how one body of data becomes two that never overlap."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Generic, TypeVar, overload

from compressor.errors import DataError

T = TypeVar("T")
Record = dict[str, Any]
Label = int | str | None

CALIBRATION_SHARE = 0.8
FEWEST_PARAGRAPHS = 10


class Lazy(Sequence[T], Generic[T]):
    """A sequence whose items are made when asked for, and not kept."""

    def __init__(self, n: int, item: Callable[[int], T]):
        self._n, self._item = n, item

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Lazy[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Lazy[T]":
        at = range(self._n)[index]
        return self._item(at) if isinstance(at, int) else pick(self, at)


def pick(items: Sequence[T], indices: Sequence[int]) -> Lazy[T]:
    return Lazy(len(indices), lambda i: items[indices[i]])


def chain(sequences: Sequence[Sequence[T]]) -> Sequence[T]:
    """The sequences one after the other."""
    if len(sequences) == 1:
        return sequences[0]
    ends = list(accumulate(map(len, sequences)))

    def item(i: int) -> T:
        which = bisect_right(ends, i)
        return sequences[which][i - ends[which]]  # counted from the end of its sequence

    return Lazy(ends[-1], item)


@dataclass(frozen=True)
class Records:
    """Samples, and the sentence a report prints about them.

    items: one dict each, made when asked for:
        text            {"text": str}
        labelled text   {"text": str, "label": int | str | None}, and "text_pair" where there are two texts
        images          {"image": PIL.Image.Image, "label": int | str | None}
    joint: stands between two texts that are joined; empty where paragraphs keep their own line ends.
    """

    items: Sequence[Record]
    description: str
    joint: str = "\n\n"

    def __len__(self) -> int:
        return len(self.items)

    def text(self) -> str:
        """All texts joined; for a text file, character for character what was read."""
        return self.joint.join(record["text"] for record in self.items)


@dataclass(frozen=True)
class Splits:
    """What to calibrate on and what to score on; they never overlap. evaluation: None when nothing can be scored."""

    calibration: Records
    evaluation: Records | None


@dataclass(frozen=True)
class Part:
    """One body of data before it is split: a file, the shards of a file, a folder of images, a split of a dataset.

    unit: what an item is called in the plural. size: bytes, where known.
    labels: None when there are none at all; a None among them is a record without one.
    """

    name: str
    items: Sequence[Record]
    unit: str
    size: int | None = None
    labels: Sequence[Label] | None = None
    joint: str = "\n\n"
    notes: tuple[str, ...] = ()

    @property
    def is_labelled(self) -> bool:
        return self.labels is not None and any(label is not None for label in self.labels)

    def whole(self, *notes: str) -> Records:
        return Records(self.items, self._described(f"{len(self.items):,} {self.unit}", notes), self.joint)

    def split(self) -> tuple[Records, Records]:
        """(first 80 %, last 20 %): of the characters for text, of the records otherwise.

        Records that come class by class are split within each class, or whole classes would be on one side only.
        Raises DataError when there is only one record.
        """
        if len(self.items) < 2:
            raise DataError(
                f"{self.name} is too small to both calibrate and score on",
                found=self.whole().description,
                hint="more data, or a folder with a train and a test file",
            )
        if self._comes_class_by_class():
            return self._halves(*self._class_by_class(), self.name + ", class by class")
        sizes = [1] * len(self.items) if self.unit_is_whole else [len(record["text"]) for record in self.items]
        n = cut(sizes)
        indices = range(len(self.items))
        return self._halves(indices[:n], indices[n:], self.name, sum(sizes[:n]) / max(sum(sizes), 1))

    @property
    def unit_is_whole(self) -> bool:
        """Whether records count alike; unlabelled text is measured in characters."""
        return "label" in self._keys

    @property
    def _keys(self) -> tuple[str, ...]:
        return ("label",) if self.unit in ("images", "texts") else ()

    def _comes_class_by_class(self) -> bool:
        if self.labels is None:
            return False
        runs = sum(1 for _ in groupby(self.labels))
        return 1 < runs == len(set(self.labels)) < len(self.labels)

    def _class_by_class(self) -> tuple[list[int], list[int]]:
        first: list[int] = []
        last: list[int] = []
        labels = self.labels or ()
        for _, run in groupby(range(len(labels)), key=lambda i: labels[i]):
            members = list(run)
            n = cut([1] * len(members))
            first += members[:n]
            last += members[n:]
        return first, last

    def _halves(
        self, first: Sequence[int], last: Sequence[int], name: str, share: float | None = None
    ) -> tuple[Records, Records]:
        share = len(first) / len(self.items) if share is None else share
        return (
            self._some(first, f"the first {100 * share:.0f} % of {name}"),
            self._some(last, f"the last {100 * (1 - share):.0f} % of {name}"),
        )

    def _some(self, indices: Sequence[int], name: str) -> Records:
        count = f"{len(indices):,} of {len(self.items):,} {self.unit}"
        return Records(pick(self.items, indices), self._described(count, (), name), self.joint)

    def _described(self, count: str, notes: Iterable[str], name: str | None = None) -> str:
        size = [in_bytes(self.size)] if self.size is not None else []
        return f"{name or self.name} ({', '.join([*size, count, *self.notes, *notes])})"


def cut(sizes: Sequence[int]) -> int:
    """How many records come before the boundary nearest to 80 % of the total; one side of a single record is empty."""
    if len(sizes) < 2:
        return len(sizes)
    ends = list(accumulate(sizes))
    wanted = CALIBRATION_SHARE * ends[-1]
    return 1 + min(range(len(ends) - 1), key=lambda i: abs(ends[i] - wanted))


def in_bytes(n: int) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.1f} {unit}"
    return f"{n} bytes"


# *** paragraphs ***

_AFTER_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_AFTER_A_LINE = re.compile(r"\n(?:[^\S\n]*\n)*")


def paragraphs(text: str) -> tuple[list[str], str]:
    """(pieces, unit): paragraphs with the blank lines after them, or lines where there are few paragraphs.

    Joined with nothing between, the pieces are the text. None of them is blank.
    """
    pieces = _pieces(text, _AFTER_BLANK_LINES)
    if len(pieces) >= FEWEST_PARAGRAPHS:
        return pieces, "paragraphs"
    return _pieces(text, _AFTER_A_LINE), "lines"


def _pieces(text: str, boundary: re.Pattern[str]) -> list[str]:
    pieces: list[str] = []
    start = 0
    for end in [*(match.end() for match in boundary.finditer(text)), len(text)]:
        if text[start:end].strip():
            pieces.append(text[start:end])
            start = end
    if pieces:
        pieces[-1] += text[start:]
    return pieces
