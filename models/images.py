"""Batches, scores and timing inputs for image classifiers, whoever prepares the pixels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compressor.graph import Feeds, Run
from compressor.models.data import Records
from compressor.models.task import batches, label_ids, spread, top1
from compressor.source import Evaluation, Score

BATCH = 50

Prepare = Callable[[Sequence[Any]], Tensor]  # images -> pixels (B, C, H, W)


def calibration_batches(records: Records, n: int, port: str, prepare: Prepare) -> list[Feeds]:
    """n images spread over the records, in batches."""
    chosen = spread(len(records), n)
    return [{port: prepare([records.items[index]["image"] for index in rows])} for rows in batches(chosen, BATCH)]


def evaluate(records: Records, n: int, port: str, prepare: Prepare, label2id: dict[str, int], n_classes: int,
             described: str) -> Evaluation:
    """Top-1 of the first output on n labelled images."""
    chosen = spread(len(records), n)
    labels = label_ids([records.items[index]["label"] for index in chosen], label2id, n_classes)

    def score(run: Run) -> Score:
        correct: list[bool] = []
        for rows in batches(range(len(chosen)), BATCH):
            pixels = prepare([records.items[chosen[row]]["image"] for row in rows])
            logits = next(iter(run({port: pixels}).values()))
            correct += (logits.argmax(-1) == labels[list(rows)]).tolist()
        return top1(correct, "images")

    return Evaluation(f"{len(chosen)} images from {described}", score)


def workloads(port: str, pixels: Tensor) -> Mapping[str, Feeds]:
    """One image, and eight at once."""
    one = pixels[:1].contiguous()
    return {"batch of 1": {port: one}, "batch of 8": {port: torch.cat([one] * 8)}}
