"""Samples, and how one body of data becomes two that never overlap."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.fingerprint import digest

Record = dict[str, Any]

CALIBRATION_SHARE = 0.8


@dataclass(frozen=True)
class Records:
    """Samples, and the sentence a report prints about them.

    items: one dict each:
        text            {"text": str}, a single one that holds all the text
        labelled text   {"text": str, "label": int | str | None}, and "text_pair" where there are two texts
        images          {"image": Picture, "label": int | str | None}
    """

    items: Sequence[Record]
    description: str

    def __len__(self) -> int:
        return len(self.items)

    def digest(self) -> str:
        """A hash of the samples and their labels."""
        return digest(*(part for item in self.items for part in _hashable(item)))


@dataclass(frozen=True)
class Splits:
    """What to calibrate on and what to score on; they never overlap. evaluation: None when nothing can be scored."""

    calibration: Records
    evaluation: Records | None

    def digest(self) -> str:
        """A hash of both parts."""
        return digest(self.calibration.digest(), self.evaluation and self.evaluation.digest())


@dataclass(frozen=True)
class Picture:
    """An image that is decoded each time it is asked for.

    stored: a path, encoded bytes, a dict of either (as `datasets` has it), or a function that reads one of these.
    folder: where a relative path starts.
    """

    name: str
    stored: Any
    folder: Path = Path()

    def open(self) -> Any:
        """The PIL image, upright. Raises DataError when it cannot be decoded."""
        from PIL import Image, ImageOps

        encoded = _encoded(self.stored)
        if not isinstance(encoded, (bytes, str, Path)):
            found = "nothing" if encoded is None else f"a {type(encoded).__name__}"
            raise DataError(f"{self.name} cannot be read", found=found, hint="encoded bytes, or the path of a file")
        try:
            with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else self.folder / encoded) as image:
                return ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{self.name} cannot be read", found=short(error), hint="replace it or leave it out"
            ) from error

    def identity(self) -> Any:
        """What tells it from others, undecoded: its bytes; or for a file of its own, name, size and time of change."""
        encoded = _encoded(self.stored)
        if not isinstance(encoded, (str, Path)):
            return encoded if isinstance(encoded, bytes) else str(encoded)
        path = self.folder / encoded
        status = path.stat() if path.is_file() else None
        return [self.name, status and status.st_size, status and status.st_mtime_ns]


def _hashable(item: Record) -> list[Any]:
    """A sample as bytes and JSON values."""
    others = {key: value for key, value in item.items() if not isinstance(value, Picture)}
    return [others, *(value.identity() for value in item.values() if isinstance(value, Picture))]


def _encoded(stored: Any) -> Any:
    value = stored() if callable(stored) else stored
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def short(error: BaseException) -> str:
    """The message on one line, or the kind of error when it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# *** splits ***


@dataclass(frozen=True)
class Part:
    """One body of data before it is split: a file or its shards, a folder of images, a split of a dataset.

    unit: what it is counted in: "images", "texts", or "characters" for text that is one long record.
    """

    name: str
    items: list[Record]
    unit: str

    @property
    def is_labelled(self) -> bool:
        return any(record.get("label") is not None for record in self.items)

    def whole(self) -> Records:
        return Records(self.items, f"{self.name} ({self._count(self.items)} {self.unit})")

    def split(self) -> tuple[Records, Records]:
        """(first 80 %, last 20 %): of the text, or of each class. Raises DataError when one of them has nothing."""
        halves = _cut_text(self.items[0]["text"]) if self.unit == "characters" else _cut_classes(self.items)
        if not all(halves):
            raise DataError(
                f"{self.name} is too small to both calibrate and score on",
                found=self.whole().description,
                hint="more data, or a folder with train and test files",
            )
        of = "" if self.unit == "characters" else "each class of "
        shares = f"the first {100 * CALIBRATION_SHARE:.0f} %", f"the last {100 * (1 - CALIBRATION_SHARE):.0f} %"
        first, last = (
            Records(half, f"{share} of {of}{self.name} ({self._count(half)} of {self._count(self.items)} {self.unit})")
            for half, share in zip(halves, shares, strict=True)
        )
        return first, last

    def _count(self, items: Sequence[Record]) -> str:
        return f"{sum(len(record['text']) for record in items) if self.unit == 'characters' else len(items):,}"


def _cut_text(text: str) -> tuple[list[Record], list[Record]]:
    """Cut after the last paragraph, line or word that ends before 80 % of the characters."""
    stop = int(CALIBRATION_SHARE * len(text))
    ends = [text.rfind(mark, stop // 2, stop) + len(mark) for mark in ("\n\n", "\n", " ")]
    at = next((end for end in ends if end > stop // 2), stop)
    first, last = ([{"text": half}] if half.strip() else [] for half in (text[:at], text[at:]))
    return first, last


def _cut_classes(items: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Within each class, or data that comes class by class would have whole classes on one side only."""
    classes: defaultdict[Any, list[int]] = defaultdict(list)
    for i, record in enumerate(items):
        classes[record["label"]].append(i)
    # A class of one calibrates; a class of two or more is on both sides.
    first = {i for members in classes.values() for i in members[: max(1, int(CALIBRATION_SHARE * len(members)))]}
    return [items[i] for i in sorted(first)], [record for i, record in enumerate(items) if i not in first]
