"""The walk through a graph that follows every channel: stored axes are numbered, each operator's rule is applied."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import guarding_hint_or_throw, has_free_unbacked_symbols

from compressor.errors import SourceError
from compressor.provenance.closure import close
from compressor.provenance.facets import Value, settled, spread, varying
from compressor.provenance.labels import Labels
from compressor.provenance.meeting import join, mix

Made = Value | tuple["Value | None", ...] | None
Rule = Callable[["Tracer", fx.Node], Made]
RULES: dict[Any, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for every overload of some ATen operators, by name."""

    def register(function: Rule) -> Rule:
        for name in names:
            packet = getattr(torch.ops.aten, name)
            RULES.update(dict.fromkeys((getattr(packet, one) for one in packet.overloads()), function))
        return function

    return register


@dataclass(frozen=True)
class Owner:
    """One axis of a stored tensor, or of a state that goes in, and the first of its labels."""

    name: str
    axis: int
    start: int
    n: int
    is_state: bool = False


class Tracer:
    """Values by node, and what their labels have met. Raises SourceError when a shape depends on data.

    for_order: whether it is asked which channels can change places, instead of which can go.
    """

    def __init__(
        self, module: fx.GraphModule, inputs: Sequence[Any], outputs: Sequence[Any], *, for_order: bool = False
    ):
        self.module, self.labels = module, Labels(for_order)
        self.values: dict[fx.Node, Made] = {}
        self.owners: dict[tuple[str, int], Owner] = {}
        self._names = _names(module)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._ports = dict(zip(placeholders, inputs, strict=True))
        self._outputs = outputs
        for node in module.graph.nodes:
            self.values[node] = self._made(node)
        self.components: np.ndarray = self.labels.components() if for_order else close(self.labels, self._facets())

    def _facets(self) -> Iterable[Tensor]:
        for made in self.values.values():
            for value in made if isinstance(made, tuple) else (made,):
                yield from value.facets if value else ()

    # *** what rules ask ***

    def value(self, argument: object) -> Value:
        """An argument that is a tensor."""
        made = self.values[argument]  # type: ignore[index]
        assert isinstance(made, Value), f"{argument} is no tensor"
        return made

    def tensors(self, node: fx.Node) -> list[Value]:
        """Every argument that is a tensor."""
        return [made for one in node.all_input_nodes if isinstance(made := self.values[one], Value)]

    def tensors_of(self, arguments: Iterable[object]) -> list[Value]:
        """Those of some arguments that are tensors, in order."""
        made = (self.values.get(one) for one in arguments if isinstance(one, fx.Node))
        return [value for value in made if isinstance(value, Value)]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of what a node makes, when it is run on the example."""
        return self.shape_of(node, node.meta["val"])

    def shape_of(self, node: fx.Node, value: Tensor) -> tuple[int, ...]:
        """The shape of one of the values that a node makes."""
        return tuple(self._number(node, size) for size in value.shape)

    def numbers(self, arguments: Any) -> Any:
        """Arguments with sizes in place of the nodes that compute them."""
        return fx.map_arg(arguments, lambda node: self._number(node, node.meta["val"]))

    def argument(self, node: fx.Node, at: int, name: str, default: Any = None) -> Any:
        """One argument, wherever it stands, with sizes in place of the nodes that compute them."""
        return self.numbers(node.args[at] if len(node.args) > at else node.kwargs.get(name, default))

    def join(self, shape: tuple[int, ...], values: Iterable[Value]) -> Value:
        """Values combined element by element."""
        values = list(values)
        return Value(shape, join(self.labels, shape, values), all(value.fixed for value in values))

    def mixed(self, value: Value, axes: Iterable[int], reason: str) -> Value:
        """The value once nothing along the axes can be removed by itself."""
        among = {axis % len(value.shape) for axis in axes}
        return Value(value.shape, mix(self.labels, value.facets, among, reason), value.fixed)

    def vector(self, value: Value, axis: int, reason: str) -> Tensor | None:
        """The labels (n,) along one axis, which nothing else may share; None where there are no channels."""
        others = {one for one in range(len(value.shape)) if one != axis}
        value = self.mixed(value, others, reason)
        ids = value.along(axis)
        if ids is None:
            return None
        for other in sorted(others, reverse=True):
            ids = ids.select(other, 0)
        return ids

    def sizes(self, shape: tuple[int, ...], axes: Iterable[int]) -> tuple[Tensor, ...]:
        """Facets of axes whose lengths the graph spells out, so that they may follow whatever they meet."""
        return tuple(spread(self.labels.new(shape[axis], owned=False), shape, axis) for axis in axes if shape[axis] > 1)

    def freeze(self, values: Iterable[Value], reason: str) -> None:
        for value in values:
            for ids in value.facets:
                self.labels.freeze(ids, reason)

    def unknown(self, node: fx.Node) -> Made:
        """Nothing that goes through an operator without a rule can be removed."""
        self.freeze(self.tensors(node), f"{str(node.target).removeprefix('aten.')} has no rule")
        made = node.meta["val"]
        if isinstance(made, Tensor):
            return Value(self.shape(node))
        return tuple(Value(self.shape_of(node, one)) if isinstance(one, Tensor) else None for one in made)

    # *** the walk ***

    def _made(self, node: fx.Node) -> Made:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return self._stored(node)
        if node.op == "output":
            self._end(node)
            return None
        return self._called(node)

    def _called(self, node: fx.Node) -> Made:
        if not _holds_tensors(node.meta.get("val")):
            return None
        if node.target in RULES:
            return RULES[node.target](self, node)
        if torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return self.join(self.shape(node), self.tensors(node))
        return self.unknown(node)

    def _input(self, node: fx.Node) -> Made:
        if not isinstance(node.meta.get("val"), Tensor):
            return None
        port, shape = self._ports[node], self.shape(node)
        if not port.is_state:
            return Value(shape)
        axes = [axis for axis in range(len(shape)) if axis not in port.dynamic]
        if self.labels.for_order:
            sizes = [n if axis in axes else 1 for axis, n in enumerate(shape)]
            ids = self.labels.new(math.prod(sizes), owned=False).reshape(sizes)
            return Value(shape, (settled(ids.expand(shape)),))
        return Value(shape, tuple(self._own(port.name, shape, axis, is_state=True) for axis in axes if shape[axis] > 1))

    def _stored(self, node: fx.Node) -> Made:
        tensor = attrgetter(str(node.target))(self.module)
        if not isinstance(tensor, Tensor):
            return None
        shape = tuple(tensor.shape)
        axes = [axis for axis, n in enumerate(shape) if n > 1] if tensor.is_floating_point() else []
        name = self._names.get(id(tensor), str(node.target))
        return Value(shape, tuple(self._own(name, shape, axis) for axis in axes), fixed=True)

    def _own(self, name: str, shape: tuple[int, ...], axis: int, is_state: bool = False) -> Tensor:
        """The facet of one stored axis, numbered when it is first read."""
        key = (name, axis)
        if key not in self.owners:
            start = int(self.labels.new(shape[axis], owned=True)[0])
            self.owners[key] = Owner(name, axis, start, shape[axis], is_state)
        start = self.owners[key].start
        return spread(torch.arange(start, start + shape[axis]), shape, axis)

    def _end(self, node: fx.Node) -> None:
        for port, made in zip(self._outputs, node.args[0], strict=True):  # type: ignore[arg-type]
            value = self.values.get(made) if isinstance(made, fx.Node) else None
            if not isinstance(value, Value):
                continue
            if port.is_state:
                self._end_state(port, value)
            else:
                self.freeze([value], f"the output {port.name} is made of them")

    def _end_state(self, port: Any, value: Value) -> None:
        """A state goes out as it came in: heads may go, and what is inside of one stays, or changes places with it."""
        if self.labels.for_order:
            return
        value = self.mixed(value, port.dynamic, f"the state {port.name} varies along them")
        for ids in value.facets:
            if len(varying(ids)) > 1:
                self.mixed(Value(value.shape, (ids,)), range(2, len(value.shape)), f"the state {port.name} keeps them")

    def _number(self, node: fx.Node, size: Any) -> Any:
        if isinstance(size, torch.SymInt):
            if has_free_unbacked_symbols(size):
                raise SourceError(
                    "channels cannot be followed through shapes that depend on data",
                    found=f"{node.target} makes {size} values",
                    hint="a forward whose shapes follow from the shapes of its inputs",
                )
            return guarding_hint_or_throw(size)
        return size


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensors, value)))


def _names(module: fx.GraphModule) -> dict[int, str]:
    """The first name of each stored tensor, by identity: tied ones have one."""
    found: dict[int, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found.setdefault(id(tensor), name)
    return found
