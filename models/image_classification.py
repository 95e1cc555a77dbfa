"""Image classifiers in the Hugging Face layout, scored by top-1."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compressor.errors import SourceError
from compressor.graph import Feeds, Port
from compressor.models import images
from compressor.models.pretrained import Pretrained
from compressor.source import Evaluation

PORT = "pixel_values"


class ImageClassification(Pretrained):
    """`pixel_values (batch, channels, height, width) -> logits (batch, classes)`."""

    task = "image-classification"
    data_kind = "image"

    @cached_property
    def _image_processor(self) -> Any:
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(self.where, trust_remote_code=self.options.remote_code)
        except Exception as error:
            raise SourceError(
                f"{self.name} has no image processor that can be loaded",
                found=" ".join(str(error).split())[:200],
                hint="preprocessor_config.json beside config.json",
            ) from error

    def processor(self) -> Any:
        return self._image_processor

    def inputs(self) -> tuple[Port, ...]:
        return (Port(PORT, {0: "batch"}),)

    def example(self) -> Feeds:
        blank = self._prepare([_blank(self.model.config.num_channels)])
        generator = torch.Generator().manual_seed(0)
        return {PORT: torch.randn(2, *blank.shape[1:], generator=generator)}

    def _prepare(self, pictures: Sequence[Any]) -> Tensor:
        mode = "L" if self.model.config.num_channels == 1 else "RGB"
        return self._image_processor([picture.convert(mode) for picture in pictures], return_tensors="pt")[PORT]

    def calibration(self, n: int) -> Sequence[Feeds]:
        return images.calibration_batches(self.splits.calibration, n, PORT, self._prepare)

    def evaluation(self, n: int) -> Evaluation | None:
        records, config = self.splits.evaluation, self.model.config
        if records is None:
            return None
        return images.evaluate(
            records, n, PORT, self._prepare, config.label2id, config.num_labels, self._described(records)
        )

    def workloads(self) -> Mapping[str, Feeds]:
        return images.workloads(PORT, self.example()[PORT])


def _blank(channels: int) -> Any:
    from PIL import Image

    return Image.new("L" if channels == 1 else "RGB", (64, 64))
