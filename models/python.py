"""Any `nn.Module`: `package.module:function` or `file.py:function`, a function of yours that returns it.

The function returns one of

    module, example                 example: a tensor, a tuple of tensors, or a dict of name -> tensor
    Model(module, example, ...)     with `prepare` to turn the images of --data into the module's input
"""

import copy
import dataclasses
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import DataError, SourceError
from compressor.fingerprint import digest
from compressor.graph import Feeds, Graph, Port, Run, lower
from compressor.models.brought import brought
from compressor.models.data import Splits, open_data
from compressor.models.images import Pixels
from compressor.models.task import Options, check_finite, class_loss
from compressor.source import Evaluation, Showcase, Training

NOT_THEIRS = (__file__, "<frozen", str(Path(torch.__file__).parent), str(Path(importlib.__file__).parent))
RETURNS = "return module, example_tensor   (or compressor.Model)"


@dataclass
class Model:
    """A module with what is needed to capture, calibrate and score it.

    example: inputs for one call, batch first; a tensor, a tuple, or a dict by the names of `forward`'s arguments.
    prepare: one PIL image -> one input tensor (C, H, W); makes `--data` with images usable.
    calibration: example-like inputs to calibrate on when there is no --data.
    labels: class names in output order, when the data's labels are names.
    training: (example-like inputs, targets) to recover on when there is no --data.
    loss: (first output, targets) -> mean loss; by default targets are class numbers.
    """

    module: nn.Module
    example: Any
    prepare: Callable[[Any], Tensor] | None = None
    calibration: Sequence[Any] = ()
    labels: Sequence[str] = ()
    training: Sequence[tuple[Any, Tensor]] = ()
    loss: Callable[[Tensor, Tensor], Tensor] = class_loss


class PythonSource:
    """Opens `module:function`, `file.py:function`, and from Python what such a function returns."""

    @staticmethod
    def accepts(name: Any) -> bool:
        if not isinstance(name, str):
            return isinstance(name, Model | tuple)
        where, colon, function = name.rpartition(":")
        if not colon or not function.isidentifier() or Path(name).exists():
            return False
        is_drive = len(where) == 1  # C:models
        return where.endswith(".py") or (not is_drive and all(part.isidentifier() for part in where.split(".")))

    @staticmethod
    def open(name: Any, options: Options) -> "ModuleSource":
        if not isinstance(name, str):
            model = _as_model("the given model", name)
            return ModuleSource(type(model.module).__name__, model, options)
        return ModuleSource(name, _as_model(name, _call(name)), options)


class ModuleSource:
    """A source around an `nn.Module`. Raises SourceError unless the module takes the example and returns tensors."""

    task = "module"

    def __init__(self, name: str, model: Model, options: Options):
        self.name, self.model, self.options = name, model, options
        self.origin = f"{type(model.module).__name__} from {name}"
        check_finite(name, model.module.eval())
        _check_float32(name, model.module)
        self._example = self._named(model.example)
        with _users_code(f"the forward of {name} fails on its example"), torch.no_grad():
            result = self._forward(model.module, *self._example.values())
        if not result or not result[0].ndim:
            raise SourceError(
                f"{name} does not return tensors", found="no batch of outputs", hint="a forward that does"
            )
        self._outputs = ["logits", *(f"output_{i}" for i in range(1, len(result)))]
        self._n_classes = result[0].shape[-1] if result[0].ndim == 2 else None

    def _named(self, example: Any) -> Feeds:
        """Example inputs by the names of forward's arguments. Raises SourceError when one is not a tensor."""
        values = example if isinstance(example, Mapping | tuple | list) else (example,)
        if not isinstance(values, Mapping):
            signature = inspect.signature(self.model.module.forward).parameters.values()
            names = [one.name for one in signature if one.kind is one.POSITIONAL_OR_KEYWORD]
            names += [f"input_{i}" for i in range(len(names), len(values))]
            values = dict(zip(names, values, strict=False))
        wrong = [f"{key} is a {type(x).__name__}" for key, x in values.items() if not isinstance(x, Tensor)]
        if wrong or not values:
            found = ", ".join(wrong) or "no inputs"
            raise SourceError(f"the example inputs of {self.name} are not tensors", found=found, hint=RETURNS)
        return dict(values)

    def _forward(self, module: nn.Module, *args: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(self._example, args, strict=True)) if isinstance(self.model.example, Mapping) else {}
        result = module(**by_name) if by_name else module(*args)
        values = (
            result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else [result]
        )
        return tuple(x for x in values if isinstance(x, Tensor))

    def lower(self, dtype: str = "float32") -> Graph:
        kind = getattr(torch, dtype)
        module = self.model.module if kind == torch.float32 else copy.deepcopy(self.model.module).to(kind)
        example = {name: x.to(kind) if x.is_floating_point() else x for name, x in _twice(self._example).items()}
        inputs = tuple(Port(name, {0: "batch"} if x.ndim else {}) for name, x in example.items())
        outputs = tuple(Port(name, {0: "batch"}) for name in self._outputs)
        return lower(module, lambda *args: self._forward(module, *args), example, inputs, outputs)

    # *** data ***

    @cached_property
    def splits(self) -> Splits:
        if not self.options.data:
            raise DataError(
                f"{self.name} brings no calibration data",
                found="no --data",
                hint="--data FOLDER with images, or Model(..., calibration=[...])",
            )
        if self.model.prepare is None:
            raise DataError(
                f"{self.name} does not say how an image becomes its input",
                found="a model without `prepare`",
                hint="return compressor.Model(module, example, prepare=image_to_tensor)",
            )
        return open_data(self.options.data, kind="image")

    @property
    def _brings_calibration(self) -> bool:
        return bool(self.model.calibration) and not self.options.data

    @property
    def calibration_description(self) -> str:
        return (
            f"the inputs that {self.name} brings" if self._brings_calibration else self.splits.calibration.description
        )

    def calibration(self, n: int) -> Sequence[Feeds]:
        if not self._brings_calibration:
            return self._pixels.batches(self.splits.calibration, n)
        chosen: list[Feeds] = []
        for feeds in map(self._named, self.model.calibration):
            if n > 0:
                chosen.append({name: x[:n] if x.ndim else x for name, x in feeds.items()})
                n -= len(next(iter(feeds.values())))
        return chosen

    @property
    def is_logits(self) -> bool:
        return self._n_classes is not None

    def training(self, n: int | None = None) -> Training:
        model, is_logits = self.model, self.is_logits
        if not self.options.data and (model.training or model.calibration):
            unlabelled: list[tuple[Any, Tensor | None]] = [(inputs, None) for inputs in model.calibration]
            named = [(self._named(inputs), targets) for inputs, targets in model.training or unlabelled]
            return brought(self.name, named, n, self.options.seed, model.loss, is_logits)
        records = self.splits.calibration
        label2id = {label: i for i, label in enumerate(model.labels)}
        made = self._pixels.training(records, n, label2id, self._n_classes, records.description)
        return dataclasses.replace(made, loss=made.loss and model.loss)

    def evaluation(self, n: int) -> Evaluation | None:
        records = self.splits.evaluation if self.options.data else None
        if records is None or self._n_classes is None:
            return None
        label2id = {label: i for i, label in enumerate(self.model.labels)}
        return self._pixels.evaluation(records, n, label2id, self._n_classes, records.description)

    def showcase(self) -> Showcase | None:
        records = self.splits.evaluation if self.options.data else None
        if records is None or self._n_classes is None:
            return None
        names = [*self.model.labels, *map(str, range(len(self.model.labels), self._n_classes))]
        return self._pixels.showcase(records, {label: i for i, label in enumerate(self.model.labels)}, names)

    def digest(self) -> str:
        """A hash of the samples, from wherever they come, and of the user's file that prepares them."""
        brought = [
            *map(self._named, self.model.calibration),
            *(self._named(inputs) for inputs, _ in self.model.training),
        ]
        targets = [targets for _, targets in self.model.training]
        tensors = [*(x for feeds in brought for pair in feeds.items() for x in pair), *targets]
        code = [_code(one) for one in (type(self.model.module), self.model.prepare, self.model.loss)]
        return digest(self.splits.digest() if self.options.data else None, self.model.labels, *code, *tensors)

    def workloads(self) -> Mapping[str, Feeds]:
        return {"example": self._example}

    def generate(self, run: Run, n_tokens: int) -> Tensor | None:
        return None

    def save(self, folder: Path, graph: Graph) -> str:
        """Nothing beside the model, whose library is the user's own code; the program where the model has shrunk."""
        own = dict(self.model.module.named_parameters())
        changed = [name for name, x in graph.module.named_parameters() if name in own and own[name].shape != x.shape]
        if not changed:
            return ""
        torch.export.save(graph.program(), folder / "model.pt2")
        return "model.pt2 holds the smaller model for torch.export.load"

    @property
    def _pixels(self) -> Pixels:
        return Pixels(next(iter(self._example)), self._prepare, self.options.seed)

    def _prepare(self, pictures: Sequence[Any]) -> Tensor:
        assert self.model.prepare is not None  # `splits` refuses
        with _users_code(f"`prepare` of {self.name} fails on an image"):
            return torch.stack([self.model.prepare(picture) for picture in pictures])


def _twice(example: Feeds) -> Feeds:
    """Batch 1 becomes 2: an axis of length 1 would be taken for a fixed one."""
    return {name: torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x for name, x in example.items()}


def _code(named: Any) -> bytes:
    """The file that defines a class or a function; its name where there is none."""
    try:
        return Path(inspect.getsourcefile(named) or "").read_bytes()
    except (TypeError, OSError):
        return repr(getattr(named, "__qualname__", type(named))).encode()


# *** the user's function ***


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    """What the user's own code raises becomes a SourceError with the lines of it that led there."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(NOT_THEIRS)
        ]
        lines = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames[-3:]]
        raise SourceError(
            what,
            found="\n    ".join([f"{type(error).__name__}: {error}", *lines]),
            hint="COMPRESS_DEBUG=1 for the whole traceback",
        ) from error


def _call(name: str) -> Any:
    where, _, function = name.rpartition(":")
    path = Path(where).expanduser()
    if where.endswith(".py") and not path.is_file():
        raise SourceError(f"no file {where}", found=f"no such file, for {name!r}", hint="FILE.py:FUNCTION")
    with _users_code(f"{where} cannot be imported"):
        module = _import_file(path) if where.endswith(".py") else _import_module(name, where)
    made = getattr(module, function, None)
    if not callable(made):
        found = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "no functions"
        raise SourceError(f"{where} has no function {function!r}", found=found, hint=f"{where}:FUNCTION")
    with _users_code(f"{name} raises an exception"):
        return made()


def _import_file(path: Path) -> Any:
    _let_import(path.parent)
    name = f"_compressor_{path.stem}"  # a file called json.py hides no other module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _import_module(name: str, where: str) -> Any:
    _let_import(Path.cwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise  # the user's module is there and lacks something itself
        hint = "package.module:FUNCTION, or FILE.py:FUNCTION"
        raise SourceError(f"no module {where!r}", found=f"{error}, for {name!r}", hint=hint) from error


def _let_import(folder: Path) -> None:
    """As `python -m` and `python file.py` do."""
    if str(folder.absolute()) not in sys.path:
        sys.path.insert(0, str(folder.absolute()))


def _as_model(name: str, made: Any) -> Model:
    model = Model(*made) if isinstance(made, tuple) and len(made) == 2 else made
    if isinstance(model, Model) and isinstance(model.module, nn.Module):
        return model
    found = "a module without example inputs" if isinstance(made, nn.Module) else f"a {type(made).__name__}"
    raise SourceError(f"{name} does not return a module and example inputs", found=found, hint=RETURNS)


def _check_float32(name: str, module: nn.Module) -> None:
    """Weights are solved in float32; `--dtype` says in which type they are written."""
    for key, x in module.named_parameters():
        if x.is_floating_point() and x.dtype != torch.float32:
            raise SourceError(
                f"{name} is not in float32",
                found=f"{key} is {str(x.dtype).removeprefix('torch.')}",
                hint="module.float(); --dtype float16 writes the artifact in half precision",
            )
