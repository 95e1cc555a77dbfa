"""Any `nn.Module`: `package.module:function` or `file.py:function`, a function of yours that returns it.

The function returns one of

    module, example                 example: a tensor, a tuple of tensors, or a dict of name -> tensor
    Model(module, example, ...)     with `prepare` to turn the images of --data into the module's input
"""

import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import DataError, SourceError
from compressor.graph import Feeds, Graph, Port, Run, lower
from compressor.models import images
from compressor.models.data import Splits, open_data
from compressor.models.task import Options
from compressor.source import Evaluation


@dataclass
class Model:
    """A module with what is needed to capture, calibrate and score it.

    example: inputs for one call, batch first; a tensor, a tuple, or a dict in the order of `forward`'s arguments.
    prepare: one PIL image -> one input tensor (C, H, W); makes `--data` with images usable.
    calibration: example-like inputs to calibrate on when there is no --data.
    labels: class names in output order, when the data's labels are names.
    """

    module: nn.Module
    example: Any
    prepare: Callable[[Any], Tensor] | None = None
    calibration: Sequence[Any] = ()
    labels: Sequence[str] = field(default=())


class PythonSource:
    """Opens `module:function`, `file.py:function`, and from Python what such a function returns."""

    @staticmethod
    def accepts(name: Any) -> bool:
        if not isinstance(name, str):
            return isinstance(name, Model | tuple)
        where, colon, function = name.rpartition(":")
        return bool(colon) and function.isidentifier() and (where.endswith(".py") or _is_dotted(where))

    @staticmethod
    def open(name: Any, options: Options) -> "ModuleSource":
        if not isinstance(name, str):
            model = _as_model("the given model", name)
            return ModuleSource(type(model.module).__name__, model, options)
        return ModuleSource(name, _as_model(name, _call(name)), options)


class ModuleSource:
    """A source around an `nn.Module`."""

    task = "module"

    def __init__(self, name: str, model: Model, options: Options):
        self.name, self.model, self.options = name, model, options
        self.model.module.eval()
        self._example = _named(model.module, model.example)
        self._splits: Splits | None = None
        self.origin = f"{type(model.module).__name__} from {name}"
        _check_finite(name, model.module)
        with torch.no_grad():
            self._n_outputs, self._n_classes = _look(model.module, self._example)

    def lower(self, dtype: str = "float32") -> Graph:
        kind = getattr(torch, dtype)
        module = self.model.module if kind == torch.float32 else copy.deepcopy(self.model.module).to(kind)
        example = {name: x.to(kind) if x.is_floating_point() else x for name, x in _twice(self._example).items()}
        inputs = tuple(Port(name, {0: "batch"} if x.ndim else {}) for name, x in example.items())
        outputs = tuple(Port(name, {0: "batch"}) for name in _output_names(self._n_outputs))
        return lower(module, lambda *args: _flat(module(*args)), example, inputs, outputs)

    # *** data ***

    @property
    def splits(self) -> Splits:
        if self._splits is None:
            if not self.options.data:
                raise DataError(
                    f"{self.name} brings no calibration data",
                    hint="--data FOLDER with images, Model(..., calibration=[...]), or --method magnitude with refit=0",
                )
            if self.model.prepare is None:
                raise DataError(
                    f"{self.name} does not say how an image becomes its input",
                    found="a function that returns a module without `prepare`",
                    hint="return compressor.Model(module, example, prepare=image_to_tensor)",
                )
            self._splits = open_data(self.options.data, kind="image")
        return self._splits

    @property
    def calibration_description(self) -> str:
        if self.model.calibration and not self.options.data:
            return f"{len(self.model.calibration)} inputs that {self.name} brings"
        return self.splits.calibration.description

    def calibration(self, n: int) -> Sequence[Feeds]:
        if self.model.calibration and not self.options.data:
            return [_named(self.model.module, one) for one in self.model.calibration[:n]]
        return images.calibration_batches(self.splits.calibration, n, self._port, self._prepare)

    def evaluation(self, n: int) -> Evaluation | None:
        if not self.options.data:
            return None
        records = self.splits.evaluation
        if records is None:
            return None
        label2id = {label: index for index, label in enumerate(self.model.labels)}
        return images.evaluate(records, n, self._port, self._prepare, label2id, self._n_classes, records.description)

    def workloads(self) -> Mapping[str, Feeds]:
        return {"example": self._example}

    def generate(self, run: Run, n_tokens: int) -> Tensor | None:
        return None

    def save(self, folder: Path, graph: Graph) -> None:
        """Nothing beside the model: its library is the user's own code."""

    @property
    def _port(self) -> str:
        return next(iter(self._example))

    def _prepare(self, pictures: Sequence[Any]) -> Tensor:
        assert self.model.prepare is not None
        return torch.stack([self.model.prepare(picture) for picture in pictures])


# *** the user's function ***


def _is_dotted(where: str) -> bool:
    return all(part.isidentifier() for part in where.split("."))


def _call(name: str) -> Any:
    where, _, function = name.rpartition(":")
    module = _import_file(name, Path(where)) if where.endswith(".py") else _import_module(name, where)
    if not hasattr(module, function):
        found = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "no functions"
        raise SourceError(f"{where} has no function {function!r}", found=found, hint="package.module:function")
    return getattr(module, function)()


def _import_file(name: str, path: Path) -> Any:
    if not path.exists():
        raise SourceError(f"cannot find {path}", found=f"no such file, for {name!r}", hint="FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _import_module(name: str, where: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not where.startswith(error.name):
            raise  # the user's module exists and lacks something itself
        raise SourceError(
            f"cannot import {where!r}", found=f"{error}, for {name!r}", hint="package.module:function, or FILE.py:FUNCTION"
        ) from None


def _as_model(name: str, made: Any) -> Model:
    if isinstance(made, Model):
        return made
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return Model(*made)
    found = "a module without example inputs" if isinstance(made, nn.Module) else type(made).__name__
    raise SourceError(
        f"{name} does not return a module and example inputs",
        found=found,
        hint="return module, example_tensor   (or compressor.Model)",
    )


def _named(module: nn.Module, example: Any) -> Feeds:
    """Example inputs by the names of forward's arguments."""
    if isinstance(example, Mapping):
        return dict(example)
    values = example if isinstance(example, (tuple, list)) else (example,)
    names = list(inspect.signature(module.forward).parameters)
    return {names[i] if i < len(names) and names[i] != "args" else f"input_{i}": x for i, x in enumerate(values)}


def _twice(example: Feeds) -> Feeds:
    """Batch 1 becomes 2: an axis of length 1 would be taken for a fixed one."""
    return {name: torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x for name, x in example.items()}


def _flat(result: Any) -> tuple[Tensor, ...]:
    if isinstance(result, Tensor):
        return (result,)
    values = result.values() if isinstance(result, Mapping) else result
    return tuple(value for value in values if isinstance(value, Tensor))


def _look(module: nn.Module, example: Feeds) -> tuple[int, int]:
    """(number of outputs, length of the first output's last axis)."""
    values = _flat(module(*example.values()))
    return len(values), values[0].shape[-1]


def _output_names(n: int) -> list[str]:
    return ["logits", *(f"output_{index}" for index in range(1, n))]


def _check_finite(name: str, module: nn.Module) -> None:
    bad = [key for key, x in module.state_dict().items() if x.is_floating_point() and not x.isfinite().all()]
    if bad:
        raise SourceError(
            f"{name} has weights that are NaN or Inf",
            found=f"{len(bad)} tensors, the first is {bad[0]}",
            hint="a checkpoint from before training diverged",
        )
