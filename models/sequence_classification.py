"""Sequence classifiers, scored by top-1 on labelled text."""

from collections.abc import Sequence

import torch

from compressor.errors import SourceError
from compressor.graph import Feeds, Run
from compressor.models.masked_lm import BATCH, Encoder
from compressor.models.records import Record
from compressor.models.task import batches, best_guess, choose, class_loss, class_score, is_labelled, label_ids
from compressor.source import Evaluation, Score, Showcase, Training

SHOWN = 4


class SequenceClassification(Encoder):
    """`(input_ids, attention_mask, token_type_ids) -> logits (batch, classes)`."""

    task = "text-classification"
    data_kind = "labelled-text"

    def calibration(self, n: int) -> Sequence[Feeds]:
        records = self.splits.calibration
        texts = [records.items[i] for i in choose(len(records), n, self.options.seed)]
        # Like lengths together: padding would count as input.
        texts.sort(key=lambda record: len(record["text"]))
        return [self._encode(batch) for batch in batches(texts, BATCH)]

    def training(self, n: int | None = None) -> Training:
        records, config = self.splits.calibration, self.model.config
        texts = [records.items[i] for i in choose(len(records), n, self.options.seed)]
        is_known = is_labelled(records)
        labels = (
            label_ids([record["label"] for record in texts], config.label2id, config.num_labels)
            if is_known
            else torch.zeros(len(texts))
        )
        return Training(
            len(texts),
            f"{len(texts)} texts from {self.calibration_description}",
            lambda rows, seed: (self._encode([texts[i] for i in rows]), labels[rows]),
            class_loss if is_known else None,
        )

    def evaluation(self, n: int) -> Evaluation | None:
        records = self.splits.evaluation
        if records is None:
            return None
        texts = [records.items[i] for i in choose(len(records), n, self.options.seed)]
        config = self.model.config
        labels = label_ids([record["label"] for record in texts], config.label2id, config.num_labels)

        def score(run: Run) -> Score:
            rows = zip(batches(texts, BATCH), labels.split(BATCH), strict=True)
            return class_score(((run(self._encode(batch))["logits"], wanted) for batch, wanted in rows), "texts")

        return Evaluation(f"{len(texts)} texts from {self.described(records)}", score)

    def showcase(self) -> Showcase | None:
        records, config = self.splits.evaluation, self.model.config
        if records is None:
            return None
        texts = [records.items[i] for i in choose(len(records), SHOWN, self.options.seed)]
        names = [config.id2label[i] for i in range(config.num_labels)]
        labels = label_ids([record["label"] for record in texts], config.label2id, config.num_labels)
        return Showcase(
            "text",
            tuple(" / ".join(filter(None, (text["text"], text.get("text_pair")))) for text in texts),
            tuple(names[i] for i in labels),
            lambda run: best_guess(run(self._encode(texts))["logits"], names),
        )

    def _encode(self, records: Sequence[Record]) -> Feeds:
        """Texts, or pairs of them, padded to the longest and cut at the window."""
        if self.tokenizer.pad_token is None:
            raise SourceError(
                f"the tokenizer of {self.name} has no padding token",
                found="pad_token is not set",
                hint="tokenizer.pad_token = tokenizer.eos_token, then save_pretrained",
            )
        pairs = [record["text_pair"] for record in records] if "text_pair" in records[0] else None
        encoded = self.tokenizer(
            [record["text"] for record in records],
            pairs,
            padding=True,
            truncation=True,
            max_length=self.window,
            return_tensors="pt",
        )
        return self.feeds(encoded["input_ids"], encoded["attention_mask"], encoded.get("token_type_ids"))
