"""What every transformers task shares: lowering through a flat forward, and saving what transformers loads."""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.graph import Feeds, Graph, Port, Run, lower
from compressor.models import zoo
from compressor.models.data import Records, Splits, open_data
from compressor.models.task import Options
from compressor.source import Evaluation

Forward = Callable[[Any, Mapping[str, Tensor]], tuple[Tensor, ...]]


class Pretrained:
    """A transformers model and its data; each task subclasses it.

    A subclass gives `example`, `ports`, `forward` and the data methods of `compressor.source.Source`.
    """

    task: str
    data_kind: str

    def __init__(self, name: str, where: str, model: Any, options: Options):
        self.name, self.where, self.model, self.options = name, where, model, options
        self.origin = f"{type(model).__name__} from {where if name != where else name}"
        self._splits: Splits | None = None

    # *** lowering ***

    def inputs(self) -> tuple[Port, ...]:
        raise AssertionError("a task names its inputs")

    def outputs(self) -> tuple[Port, ...]:
        return (Port("logits", {0: "batch"}),)

    def example(self) -> Feeds:
        raise AssertionError("a task gives an example")

    def forward(self, model: Any, feeds: Feeds) -> tuple[Tensor, ...]:
        return (model(**feeds).logits,)

    def lower(self, dtype: str = "float32") -> Graph:
        kind = getattr(torch, dtype)
        model = self.model if kind == torch.float32 else copy.deepcopy(self.model).to(kind)
        example = {name: x.to(kind) if x.is_floating_point() else x for name, x in self.example().items()}
        names = [port.name for port in self.inputs()]

        def flat(*args: Tensor) -> tuple[Tensor, ...]:
            return self.forward(model, dict(zip(names, args, strict=True)))

        return lower(model, flat, example, self.inputs(), self.outputs())

    # *** data ***

    @property
    def splits(self) -> Splits:
        if self._splits is None:
            self._splits = self._open_data()
        return self._splits

    def _open_data(self) -> Splits:
        if self.options.data:
            return open_data(self.options.data, kind=self.data_kind)  # type: ignore[arg-type]
        if self.data_kind == "image":
            raise DataError(
                f"{self.name} needs images to calibrate and to be scored on",
                hint="--data FOLDER with train and test, or --method magnitude with refit=0",
            )
        # Prose serves any language model better than noise; the report says which text it was.
        own = open_data(str(zoo.folder("tiny-gpt2") / "data"), kind="text")
        return own if self.data_kind == "text" else Splits(own.calibration, None)

    @property
    def calibration_description(self) -> str:
        return self._described(self.splits.calibration)

    def _described(self, records: Records) -> str:
        default = "" if self.options.data else "the sample text that ships with Compressor: "
        return f"{default}{records.description}"

    def evaluation(self, n: int) -> Evaluation | None:
        raise AssertionError("a task is scored")

    def generate(self, run: Run, n_tokens: int) -> Tensor | None:
        return None

    # *** saving ***

    def save(self, folder: Path, graph: Graph) -> None:
        """Configuration, processor, and the manifest that transformers.exporters' ONNX runner reads."""
        self.model.config.save_pretrained(folder)
        if getattr(self.model, "generation_config", None) is not None:
            self.model.generation_config.save_pretrained(folder)
        self.processor().save_pretrained(folder)
        _write_manifest(folder, self.model, graph)

    def processor(self) -> Any:
        raise AssertionError("a task has a tokenizer or an image processor")


def _write_manifest(folder: Path, model: Any, graph: Graph) -> None:
    """`export.json`: how transformers' ExportedModel calls `model.onnx`, by the graph's own input names."""
    from torch.utils import _pytree
    from transformers.exporters.base import EXPORT_MANIFEST_FILE, EXPORT_SCHEMA_VERSION
    from transformers.exporters.metadata import ExportMetadata

    def spec(ports: tuple[Port, ...]) -> str:
        return _pytree.treespec_dumps(_pytree.tree_structure({port.name: 0 for port in ports}))

    metadata = ExportMetadata(
        architecture=type(model).__name__,
        export_dtype=next((str(x.dtype).removeprefix("torch.") for x in graph.module.parameters()), "float32"),
        export_device="cpu",
        kwargs={
            name: {"rank": x.ndim, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
            for name, x in graph.example.items()
        },
        in_spec=spec(graph.inputs),
        out_spec=spec(graph.outputs),
    )
    manifest = {
        "schema_version": EXPORT_SCHEMA_VERSION,
        "export_format": "onnx",
        "components": {"model": {"file": "model.onnx", "metadata": dataclasses.asdict(metadata)}},
    }
    (folder / EXPORT_MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
