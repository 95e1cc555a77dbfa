"""Batches, scores and timing inputs for image classifiers, whoever prepares the pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.graph import Feeds, Run
from compressor.models.records import Records
from compressor.models.task import batches, choose, label_ids, top1
from compressor.source import Evaluation, Score

BATCH = 50


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

    def evaluation(
        self, records: Records, n: int, label2id: dict[str, int], n_classes: int, described: str
    ) -> Evaluation:
        """Top-1 of the first output on n labelled images. Raises DataError when a label is not the model's."""
        chosen = choose(len(records), n, self.seed)
        labels = label_ids([records.items[i]["label"] for i in chosen], label2id, n_classes)

        def score(run: Run) -> Score:
            correct: list[bool] = []
            for rows, wanted in zip(batches(chosen, BATCH), labels.split(BATCH), strict=True):
                logits = next(iter(run(self._feeds(records, rows)).values()))
                correct += (logits.argmax(-1) == wanted).tolist()
            return top1(correct, "images")

        return Evaluation(f"{len(chosen)} images from {described}", score)

    def workloads(self, pixels: Tensor) -> Mapping[str, Feeds]:
        """One image, and eight at once."""
        one = pixels[:1].contiguous()
        return {"batch of 1": {self.port: one}, "batch of 8": {self.port: torch.cat([one] * 8)}}
