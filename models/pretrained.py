"""What every transformers task shares: lowering through a flat forward, and saving what transformers loads."""

import copy
import dataclasses
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.errors import DataError
from compressor.fingerprint import digest
from compressor.graph import Feeds, Graph, Port, Run, lower
from compressor.models import zoo
from compressor.models.data import Kind, Records, Splits, open_data
from compressor.models.quiet import quiet_transformers
from compressor.models.resized import is_resized, resized
from compressor.models.task import Options
from compressor.proof.parity import TOLERANCE, difference
from compressor.source import Evaluation, Showcase, Training

DIGESTED = 4  # samples whose inputs stand for how all of them are prepared


PROGRAM = "model.pt2"


class Pretrained(ABC):
    """A transformers model and its data; a `compressor.source.Source` but for what each task adds."""

    task: str
    data_kind: ClassVar[Kind]

    def __init__(self, name: str, where: str, model: Any, options: Options):
        self.name, self.where, self.model, self.options = name, where, model, options
        self.origin = f"{type(model).__name__} from {name}"

    @abstractmethod
    def inputs(self) -> tuple[Port, ...]: ...

    @abstractmethod
    def example(self) -> Feeds:
        """One call, with no axis that varies of length 1."""

    @abstractmethod
    def processor(self) -> Any:
        """The tokenizer or the image processor. Raises SourceError when there is none."""

    @abstractmethod
    def calibration(self, n: int) -> Sequence[Feeds]: ...

    @abstractmethod
    def training(self, n: int | None = None) -> Training: ...

    @abstractmethod
    def evaluation(self, n: int) -> Evaluation | None: ...

    @abstractmethod
    def workloads(self) -> Mapping[str, Feeds]: ...

    def outputs(self) -> tuple[Port, ...]:
        return (Port("logits", {0: "batch"}),)

    def forward(self, model: Any, feeds: Feeds) -> tuple[Tensor, ...]:
        return (model(**feeds).logits,)

    def generate(self, run: Run, n_tokens: int) -> Tensor | None:
        return None

    def showcase(self) -> Showcase | None:
        return None

    # *** lowering ***

    def lower(self, dtype: str = "float32") -> Graph:
        kind = getattr(torch, dtype)
        model = self.model if kind == torch.float32 else copy.deepcopy(self.model).to(kind)
        example = {name: x.to(kind) if x.is_floating_point() else x for name, x in self.example().items()}
        names = [port.name for port in self.inputs()]

        def flat(*args: Tensor) -> tuple[Tensor, ...]:
            return self.forward(model, dict(zip(names, args, strict=True)))

        return lower(model, flat, example, self.inputs(), self.outputs())

    # *** data ***

    @cached_property
    def splits(self) -> Splits:
        if self.options.data:
            return open_data(self.options.data, kind=self.data_kind)
        if self.data_kind == "image":
            raise DataError(
                f"{self.name} needs images to calibrate and to be scored on",
                found="no --data",
                hint="--data FOLDER with train and test",
            )
        # Prose serves any language model better than noise; the report says which text it was.
        own = open_data(zoo.folder("tiny-gpt2") / "data", kind="text")
        return own if self.data_kind == "text" else Splits(_paragraphs(own.calibration), None)

    @property
    def calibration_description(self) -> str:
        return self.described(self.splits.calibration)

    def digest(self) -> str:
        """A hash of the data, and of what the tokenizer or image processor makes of its beginning."""
        feeds = next(iter(self.calibration(DIGESTED)), {})
        return digest(self.splits.digest(), *(part for pair in feeds.items() for part in pair))

    def described(self, records: Records) -> str:
        return ("" if self.options.data else "the sample text that ships with Compressor: ") + records.description

    # *** saving ***

    def save(self, folder: Path, graph: Graph) -> str:
        """Configuration, processor, and the manifest that the ONNX runner of transformers.exporters reads.

        Of a model that has lost channels or layers the weights, too, where `from_pretrained` can load them; else the
        program.
        """
        self.model.config.save_pretrained(folder)
        if getattr(self.model, "generation_config", None) is not None:
            self.model.generation_config.save_pretrained(folder)
        self.processor().save_pretrained(folder)
        if importlib.util.find_spec("transformers.exporters.runners"):  # came after transformers 5.17
            _write_manifest(folder, type(self.model).__name__, graph)
        return self._save_smaller(folder, graph) if is_resized(self.model, graph) else ""

    def _save_smaller(self, folder: Path, graph: Graph) -> str:
        made, why = resized(self.model, graph)
        if graph.points:
            why, made = "its activations are rounded", None
        if made is not None:
            wanted = graph.run(graph.example)[graph.outputs[0].name]
            with torch.no_grad():
                found = self.forward(made, graph.example)[0]
            if difference(lambda _: {"": wanted}, lambda _: {"": found}, {}) <= TOLERANCE[_name(wanted.dtype)]:
                with quiet_transformers():
                    made.save_pretrained(folder)
                return "from_pretrained loads the smaller model from this folder"
            why = "the model that its configuration makes gives other outputs"
        torch.export.save(graph.program(), folder / PROGRAM)
        after = ", after import compressor.rounded" if graph.points else ""
        return f"from_pretrained cannot load the smaller model: {why}; {PROGRAM} holds it for torch.export.load{after}"


def _paragraphs(records: Records) -> Records:
    paragraphs = [text for text in records.items[0]["text"].split("\n\n") if text.strip()]
    return Records([{"text": text} for text in paragraphs], f"paragraphs of {records.description}")


def _write_manifest(folder: Path, architecture: str, graph: Graph) -> None:
    """`export.json`: how transformers' ExportedModel calls `model.onnx`, by the graph's own input names."""
    from torch.utils import _pytree
    from transformers.exporters.base import EXPORT_MANIFEST_FILE, EXPORT_SCHEMA_VERSION
    from transformers.exporters.metadata import ExportMetadata

    def spec(ports: tuple[Port, ...]) -> str:
        return _pytree.treespec_dumps(_pytree.tree_structure({port.name: 0 for port in ports}))

    metadata = ExportMetadata(
        architecture=architecture,
        export_dtype=next((_name(x.dtype) for x in graph.module.parameters()), "float32"),
        export_device="cpu",
        kwargs={
            name: {"rank": x.ndim, "shape": list(x.shape), "dtype": _name(x.dtype)} for name, x in graph.example.items()
        },
        in_spec=spec(graph.inputs),
        out_spec=spec(graph.outputs),
    )
    manifest = {
        "schema_version": EXPORT_SCHEMA_VERSION,
        "export_format": "onnx",
        "components": {"model": {"file": "model.onnx", "metadata": dataclasses.asdict(metadata)}},
    }
    (folder / EXPORT_MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
