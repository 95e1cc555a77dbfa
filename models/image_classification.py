"""Image classifiers in the Hugging Face layout, scored by top-1."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compressor.errors import SourceError
from compressor.graph import Feeds, Port
from compressor.models.images import Pixels
from compressor.models.pretrained import Pretrained
from compressor.models.records import short
from compressor.source import Evaluation, Showcase, Training

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
        except ImportError as error:  # the first releases of transformers 5 load one with torchvision alone
            raise self._no_processor(
                error, "pip install torchvision, or a newer transformers, which needs none"
            ) from error
        except Exception as error:
            hint = "preprocessor_config.json beside config.json (image_processor.save_pretrained)"
            raise self._no_processor(error, hint) from error

    def _no_processor(self, error: Exception, hint: str) -> SourceError:
        return SourceError(f"{self.name} has no image processor that can be loaded", found=short(error), hint=hint)

    def processor(self) -> Any:
        return self._image_processor

    def inputs(self) -> tuple[Port, ...]:
        return (Port(PORT, {0: "batch"}),)

    def example(self) -> Feeds:
        from PIL import Image

        [blank] = self._prepare([Image.new("RGB", (64, 64))])
        return {PORT: torch.randn(2, *blank.shape, generator=torch.Generator().manual_seed(0))}

    def _prepare(self, pictures: Sequence[Any]) -> Tensor:
        mode = "L" if getattr(self.model.config, "num_channels", 3) == 1 else "RGB"
        return self._image_processor([picture.convert(mode) for picture in pictures], return_tensors="pt")[PORT]

    @property
    def _pixels(self) -> Pixels:
        return Pixels(PORT, self._prepare, self.options.seed)

    def calibration(self, n: int) -> Sequence[Feeds]:
        return self._pixels.batches(self.splits.calibration, n)

    def training(self, n: int | None = None) -> Training:
        config = self.model.config
        described = self.calibration_description
        return self._pixels.training(self.splits.calibration, n, config.label2id, config.num_labels, described)

    def evaluation(self, n: int) -> Evaluation | None:
        records, config = self.splits.evaluation, self.model.config
        if records is None:
            return None
        return self._pixels.evaluation(records, n, config.label2id, config.num_labels, self.described(records))

    def showcase(self) -> Showcase | None:
        records, config = self.splits.evaluation, self.model.config
        names = [config.id2label[i] for i in range(config.num_labels)]
        return None if records is None else self._pixels.showcase(records, config.label2id, names)

    def workloads(self) -> Mapping[str, Feeds]:
        return self._pixels.workloads(self.example()[PORT])
