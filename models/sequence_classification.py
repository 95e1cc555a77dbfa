"""Sequence classifiers, scored by top-1 on labelled text."""

from collections.abc import Sequence
from typing import Any

from compressor.graph import Feeds, Port, Run
from compressor.models.masked_lm import Encoder
from compressor.models.task import batches, label_ids, spread, top1
from compressor.source import Evaluation, Score


class SequenceClassification(Encoder):
    """`(input_ids, attention_mask, token_type_ids) -> logits (batch, classes)`."""

    task = "text-classification"
    data_kind = "labelled-text"

    def outputs(self) -> tuple[Port, ...]:
        return (Port("logits", {0: "batch"}),)

    def calibration(self, n: int) -> Sequence[Feeds]:
        records = self.splits.calibration
        texts = [records.items[index] for index in spread(len(records), n)]
        # Like lengths together: padding would count as input.
        texts.sort(key=lambda record: len(record["text"]))
        return [self._encode(batch) for batch in batches(texts, 8)]

    def evaluation(self, n: int) -> Evaluation | None:
        records = self.splits.evaluation
        if records is None:
            return None
        chosen = [records.items[index] for index in spread(len(records), n)]
        config = self.model.config
        labels = label_ids([record["label"] for record in chosen], config.label2id, config.num_labels)

        def score(run: Run) -> Score:
            correct: list[bool] = []
            for rows in batches(range(len(chosen)), 8):
                guesses = run(self._encode([chosen[row] for row in rows]))["logits"].argmax(-1)
                correct += (guesses == labels[list(rows)]).tolist()
            return top1(correct, "texts")

        return Evaluation(f"{len(chosen)} texts from {self._described(records)}", score)

    def _encode(self, chosen: Sequence[dict[str, Any]]) -> Feeds:
        pairs = [record["text_pair"] for record in chosen] if "text_pair" in chosen[0] else None
        tokenizer = self.tokenizer
        encoded = tokenizer(
            [record["text"] for record in chosen],
            pairs,
            padding=tokenizer.pad_token is not None,
            truncation=True,
            max_length=self.window,
            return_tensors="pt",
        )
        return self.feeds(encoded["input_ids"], encoded["attention_mask"], encoded.get("token_type_ids"))
