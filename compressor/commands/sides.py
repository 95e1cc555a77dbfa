"""One side of a comparison: an ONNX file, an artifact's folder or a model, as lines of text and weights by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from compressor import onnx_file
from compressor.contractions import SCALE, Contraction, contractions
from compressor.driver import open_source
from compressor.errors import SourceError
from compressor.graph import Graph
from compressor.recipe import Recipe

OWN_NAME = "val_"  # how torch's exporter and optimizer call what has no name


@dataclass(frozen=True)
class Weight:
    """One stored tensor. read: its values, codes times their scales, with the contracted axis last where there is one.

    shape: as stored, or as the model has it. where: what contracts it, "" when nothing does. dtype: of what is stored.
    """

    shape: tuple[int, ...]
    where: str
    dtype: str
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Side:
    """kind: "ONNX" or "ATen": which operators the lines are made of. lines: one for each operator, without the names of
    values, which count up and differ behind the first change."""

    name: str
    kind: str
    lines: tuple[tuple[str, str], ...]  # (operator, the whole line)
    weights: dict[str, Weight]


def open_side(model: Any, *, trust_remote_code: bool = False) -> Side:
    """Read an artifact's folder, an ONNX file, or any model that `export` takes. Raises SourceError."""
    path = Path(model) if isinstance(model, str | Path) else None
    if path is not None and path.suffix == ".onnx":
        return _of_file(path)
    if path is not None and (path / onnx_file.MODEL_FILE).is_file():
        return _of_file(path / onnx_file.MODEL_FILE)
    name = str(model) if isinstance(model, Path) else model
    recipe = Recipe(model=name if isinstance(name, str) else "", trust_remote_code=trust_remote_code)
    source = open_source(name, recipe)
    return _of_graph(source.name, source.lower())


# *** files ***


def _of_file(path: Path) -> Side:
    if not path.is_file():
        raise SourceError(f"cannot find {path}", hint="an .onnx file, an artifact's folder, or a model's name")
    model = onnx_file.read(path)
    lines = tuple((node.op_type, _node_line(node)) for node in model.graph.all_nodes())
    return Side(str(path), "ONNX", lines, dict(_file_weights(model)))


def _file_weights(model: ir.Model) -> Iterator[tuple[str, Weight]]:
    """What is contracted, then what else has a name and floating-point values."""
    seen: set[str] = set()
    for found in contractions(model):
        seen |= {found.value.name or "", found.site}
        where = f"{found.op} axis {found.axis % len(found.shape)}"
        yield found.site, Weight(found.shape, where, found.dtype, lambda found=found: _values(found))  # type: ignore[misc]
    for name, value in model.graph.initializers.items():
        x = value.const_value
        if x is None or name in seen or name.startswith(OWN_NAME) or name.endswith(SCALE):
            continue
        if x.dtype.is_floating_point():
            dtype = str(np.dtype(x.dtype.numpy()))
            yield name, Weight(tuple(x.shape.numpy()), "", dtype, lambda x=x: _tensor(x.numpy()))  # type: ignore[misc]


def _values(found: Contraction) -> Tensor:
    W, scales = _tensor(found.along_last()), found.scales()
    if scales is None:
        return W
    # A scale for each row, or for each group of neighbours within one.
    spread = _tensor(scales).reshape(len(W), -1)
    if spread.shape[1] > 1:
        spread = spread.repeat_interleave(-(-W.shape[1] // spread.shape[1]), 1)[:, : W.shape[1]]
    return W * spread.reshape(*spread.shape, *[1] * (W.ndim - 2))


def _tensor(values: np.ndarray) -> Tensor:
    """A copy; types that only ONNX's arrays have, such as bfloat16, in single precision."""
    return torch.from_numpy(values.astype(np.float32) if values.dtype.kind not in "fiu" else values.copy())


def _node_line(node: ir.Node) -> str:
    inputs = ", ".join(_value(x) for x in node.inputs if x is not None)
    attributes = ", ".join(f"{key}={_attribute(x)}" for key, x in sorted(node.attributes.items()))
    return f"{node.op_type}({inputs}){f' {{{attributes}}}' if attributes else ''} -> {_shapes(node.outputs)}"


def _value(x: ir.Value) -> str:
    is_weight = x.is_initializer() and not (x.name or "").startswith(OWN_NAME)
    return f"{x.name}{_shape(x)}" if is_weight else _shape(x)


def _shapes(values: Any) -> str:
    return ", ".join(map(_shape, values))


def _shape(x: ir.Value) -> str:
    return "[?]" if x.shape is None else f"[{', '.join(map(str, x.shape))}]"


def _attribute(x: ir.Attr) -> str:
    return "graph" if x.type == ir.AttributeType.GRAPH else str(x.value)


# *** models ***


def _of_graph(name: str, graph: Graph) -> Side:
    nodes = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    lines = tuple((str(node.target), _aten_line(node)) for node in nodes)
    weights = {
        site.name: Weight(site.shape, f"{site.op} axis {site.axis}", _dtype(site.weight),
                          lambda site=site: site.weight.detach().movedim(site.axis, -1))  # type: ignore[misc]
        for site in graph.sites
    }  # fmt: skip
    others = {
        key: Weight(tuple(x.shape), "", _dtype(x), lambda x=x: x.detach())  # type: ignore[misc]
        for key, x in graph.module.named_parameters()
        if key not in weights
    }
    return Side(name, "ATen", lines, weights | others)


def _aten_line(node: fx.Node) -> str:
    inputs = ", ".join(_argument(x) for x in node.all_input_nodes)
    return f"{node.target}({inputs}) -> {_node_shape(node)}"


def _argument(node: fx.Node) -> str:
    return f"{node.target}{_node_shape(node)}" if node.op == "get_attr" else _node_shape(node)


def _node_shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    shape = getattr(value, "shape", None)
    return "[?]" if shape is None else f"[{', '.join(str(n) if isinstance(n, int) else '*' for n in shape)}]"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
