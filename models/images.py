"""Batches, scores and timing inputs for image classifiers, whoever prepares the pixels."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.graph import Feeds, Run
from compressor.models.records import Records
from compressor.models.task import batches, best_guess, choose, class_loss, class_score, is_labelled, label_ids
from compressor.source import Answer, Evaluation, Score, Showcase, Training

BATCH = 50
SHOWN, SHOWN_SIDE, LOSSLESS_SIDE = 12, 96, 32
MOST_VALUES = 1 << 22
"""Of the images that go through a model at once while it learns: 1365 of 32 x 32, 27 of 224 x 224."""


@dataclass(frozen=True)
class Pixels:
    """How images become a model's input.

    port: the input's name. prepare: PIL images -> pixels (B, C, H, W). seed: chooses the images.
    """

    port: str
    prepare: Callable[[Sequence[Any]], Tensor]
    seed: int

    def batches(self, records: Records, n: int) -> list[Feeds]:
        """n of the images, or all there are."""
        return [self._feeds(records, rows) for rows in batches(choose(len(records), n, self.seed), BATCH)]

    def _feeds(self, records: Records, rows: Sequence[int]) -> Feeds:
        return {self.port: self.prepare([records.items[i]["image"].open() for i in rows])}

    def training(
        self, records: Records, n: int | None, label2id: dict[str, int], n_classes: int | None, described: str
    ) -> Training:
        """n labelled images, or all there are; without a loss where labels or classes are missing.

        Raises DataError when a label is not the model's.
        """
        chosen = choose(len(records), n, self.seed)
        labels, loss = torch.zeros(len(chosen)), None
        if n_classes is not None and is_labelled(records):
            labels = label_ids([records.items[i]["label"] for i in chosen], label2id, n_classes)
            loss = class_loss
        return Training(
            len(chosen),
            f"{len(chosen)} images from {described}",
            lambda rows, seed: (self._feeds(records, [chosen[i] for i in rows]), labels[rows]),
            loss,
            is_logits=n_classes is not None,
            at_once=max(1, MOST_VALUES // self._size(records)),
        )

    def _size(self, records: Records) -> int:
        """Values in one image as the model takes it."""
        return self._feeds(records, [0])[self.port].numel() if len(records) else 1

    def evaluation(
        self, records: Records, n: int, label2id: dict[str, int], n_classes: int, described: str
    ) -> Evaluation:
        """Top-1 of the first output on n labelled images. Raises DataError when a label is not the model's."""
        chosen = choose(len(records), n, self.seed)
        labels = label_ids([records.items[i]["label"] for i in chosen], label2id, n_classes)

        def score(run: Run) -> Score:
            rows = zip(batches(chosen, BATCH), labels.split(BATCH), strict=True)
            logits = ((next(iter(run(self._feeds(records, at)).values())), wanted) for at, wanted in rows)
            return class_score(logits, "images")

        return Evaluation(f"{len(chosen)} images from {described}", score)

    def showcase(self, records: Records, label2id: dict[str, int], names: Sequence[str]) -> Showcase:
        """A few of the images, with the class of the first output that is most likely."""
        chosen = choose(len(records), SHOWN, self.seed)
        labels = label_ids([records.items[i]["label"] for i in chosen], label2id, len(names))

        def answers(run: Run) -> list[Answer]:
            return best_guess(next(iter(run(self._feeds(records, chosen)).values())), names)

        pictures = tuple(_data_uri(records.items[i]["image"].open()) for i in chosen)
        return Showcase("picture", pictures, tuple(names[i] for i in labels), answers)

    def workloads(self, pixels: Tensor) -> Mapping[str, Feeds]:
        """One image, and eight at once."""
        one = pixels[:1].contiguous()
        return {"batch of 1": {self.port: one}, "batch of 8": {self.port: torch.cat([one] * 8)}}


def _data_uri(picture: Any) -> str:
    """A small copy of a PIL image, as a page holds it."""
    small, stored = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    kind = "png" if max(small.size) <= LOSSLESS_SIDE else "jpeg"
    small.save(stored, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(stored.getvalue()).decode()}"
