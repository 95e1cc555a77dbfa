"""The model-level graph: an ATen graph whose parameters are the model's own tensors.

A pass that writes a weight writes the module's weight; a pass that changes the graph calls `restructured()`, and the
exported program is made anew from the graph when it is next needed.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from compressor.errors import InternalError, SourceError
from compressor.orphans import Orphan, find_orphans
from compressor.provenance import Tracer
from compressor.quantization import Grid, Point
from compressor.sites import WeightSite, find_sites
from compressor.stored import stored

Feeds = Mapping[str, Tensor]  # input name -> tensor
Run = Callable[[Feeds], dict[str, Tensor]]  # one call of a graph, or of a runtime's session


@dataclass(frozen=True)
class Port:
    """One input or output: its name, and the axes that may vary with the symbol each is called by.

    is_state: whether it is carried from one call to the next (a key-value cache), so that nothing outside the model
        fixes its other axes, and they may shrink with it.
    """

    name: str
    dynamic: Mapping[int, str]
    is_state: bool = False

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{axis}: {symbol}' for axis, symbol in self.dynamic.items())})"


class Graph:
    """An ATen graph with named inputs and outputs; the first output is the one that is scored."""

    def __init__(self, program: ExportedProgram, inputs: tuple[Port, ...], outputs: tuple[Port, ...], example: Feeds):
        self.module: fx.GraphModule = program.module(check_guards=False)  # type: ignore[assignment]
        # torch adds a hook that checks the example's shapes; passes may change shapes.
        self.module._forward_pre_hooks.clear()
        self.inputs, self.outputs, self.example = inputs, outputs, dict(example)
        self._program: ExportedProgram | None = program
        # (state, axis) -> for each time that it lost positions, how many there were, and those that were left
        self._lost: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}
        self._changes: list[Callable[[Graph], None]] = []
        self.grids: dict[str, Grid] = {}  # of the weights that were quantized, by name
        self.points: list[Point] = []  # the activations that are rounded, in order
        self._codes: dict[str, Tensor] = {}  # of a capture whose own weights are too short to tell them

    @cached_property
    def sites(self) -> list[WeightSite]:
        """Every weight the graph contracts, in order of first use."""
        return find_sites(self.module)

    @cached_property
    def orphans(self) -> list[Orphan]:
        """Every weight of two or more axes that is not a site, with the reason."""
        return find_orphans(self.module, self.sites)

    @cached_property
    def tracer(self) -> Tracer:
        """Where the channels of every value come from."""
        return Tracer(self.module, self.inputs, self.outputs)

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        """Outputs by name for inputs by name; no gradients."""
        feeds = self.adapt(feeds)
        with torch.no_grad():
            values = self.module(*(feeds[port.name] for port in self.inputs))
        return dict(zip((port.name for port in self.outputs), values, strict=True))

    def adapt(self, feeds: Feeds) -> Feeds:
        """Feeds for the graph as captured, or as it was since, as it takes them now: states lose what was removed.

        Feeds that fit already stay as they are.
        """
        adapted = dict(feeds)
        for (name, axis), losses in self._lost.items():
            for before, left in losses if name in adapted else ():
                if adapted[name].shape[axis] == before:
                    adapted[name] = adapted[name].index_select(axis, left.to(adapted[name].device))
        return adapted

    def narrow(self, name: str, axis: int, positions: Tensor) -> None:
        """To be called by what removes positions of a state along an axis: those that are left, int64."""
        before = self.example[name].shape[axis]
        self._lost.setdefault((name, axis), []).append((before, positions))
        self.example[name] = self.example[name].index_select(axis, positions)

    def restructured(self) -> None:
        """To be called by a pass that has added, removed or rewired nodes or parameters."""
        self._lint()
        self.module.recompile()
        self._program = None
        self._forget()

    def changed(self, again: "Callable[[Graph], None]") -> None:
        """To be called by what has changed the structure: how to do the same to another capture of the model."""
        self._changes.append(again)

    def codes(self, name: str) -> Tensor:
        """The codes of a weight that lies on a grid (groups, m, d), int8. Raises InternalError when it has left it."""
        if name in self._codes:
            return self._codes[name]
        site = next((site for site in self.sites if site.name == name), None)
        W = site.matrix() if site else stored(self.module, name).detach().float()[None]  # looked up: (1, n, d)
        return self.grids[name].codes(W)

    def repeat_on(self, other: "Graph") -> None:
        """Change another capture of the same model, in any dtype, as this one was, and give it this one's weights.

        Codes are handed on as they are: half precision rounds code times scale by up to a sixteenth of a code. Nothing
        else is done where only values have changed, which captures of one model share.
        """
        other.grids, other._codes = dict(self.grids), {name: self.codes(name) for name in self.grids}
        if not self._changes:
            return
        for again in self._changes:
            again(other)
        theirs = _tensors(other.module)
        with torch.no_grad():
            for name, tensor in _tensors(self.module).items():
                theirs[name].copy_(tensor)  # casts

    def copy(self) -> "Graph":
        """The graph with parameters and buffers of its own; tied ones stay tied."""
        made = copy.copy(self)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own copying warns of torch's own future
            made.module, made.example = copy.deepcopy(self.module), dict(self.example)
        made._program = None
        made._changes = list(self._changes)
        made._lost = {key: list(losses) for key, losses in self._lost.items()}
        made.grids, made.points = dict(self.grids), list(self.points)
        made._forget()
        return made

    def _forget(self) -> None:
        """What was found in the graph is looked for again."""
        for name in ("sites", "orphans", "tracer"):
            self.__dict__.pop(name, None)

    def program(self) -> ExportedProgram:
        """The exported program of the graph as it stands now."""
        if self._program is None:
            self._program = _export(self.module, self.example, self.inputs)
        return self._program

    def verify(self) -> None:
        """Raise InternalError unless the graph is legal: it lints, and every site's weight is finite."""
        self._lint()
        if broken := self.not_finite():
            raise InternalError(f"{broken} holds NaN or Inf after a pass")

    def _lint(self) -> None:
        try:
            self.module.graph.lint()
        except RuntimeError as error:
            raise InternalError(f"a pass has left the graph broken: {error}") from error

    def not_finite(self) -> str:
        """The first site whose weight holds NaN or Inf, or ""."""
        return next((site.name for site in self.sites if not torch.isfinite(site.weight).all()), "")

    def text(self) -> str:
        """The graph as stable text, one line per value: name, dtype, shape, op, arguments."""
        nodes = list(self.module.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        names: dict[str, str] = {}  # torch's symbol -> ours
        for node, port in zip(placeholders, self.inputs, strict=True):
            names |= {str(node.meta["val"].shape[axis]): symbol for axis, symbol in port.dynamic.items()}
        ports = {node: port.name for node, port in zip(placeholders, self.inputs, strict=True)}
        return "\n".join(_line(node, ports, names) for node in nodes if node.users or node.op == "output")


def _tensors(module: fx.GraphModule) -> dict[str, Tensor]:
    return dict((*module.named_parameters(), *module.named_buffers()))


def lower(
    model: nn.Module,
    forward: Callable[..., tuple[Tensor, ...]],
    example: Feeds,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
) -> Graph:
    """Capture a model as a Graph.

    forward: takes the inputs in order as plain tensors, returns the outputs in order; it calls the model.
    example: one tensor per input; an axis that varies must not have length 1 in it.
    Raises SourceError with torch's reason when the model cannot be captured, or when a weight is not finite.
    """
    with _forward_as(model, forward), _quiet_torch():
        try:
            program = _export(model, example, inputs)
        except Exception as error:
            raise SourceError(
                f"torch.export cannot capture {type(model).__name__}",
                found=_why(error),
                hint="a forward without data-dependent Python branches; COMPRESS_DEBUG=1 shows torch's full report",
            ) from error
    graph = Graph(program, inputs, outputs, example)
    if broken := graph.not_finite():
        raise SourceError(f"the weight {broken} holds NaN or Inf", hint="a model whose weights are finite")
    return graph


def _why(error: Exception) -> str:
    """What torch found wrong, and the line of the model where it did, out of pages of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    details = [line for line in lines[1:] if line.startswith(("- ", "File "))]
    return " ".join([f"{type(error).__name__}:", *lines[:1], *details[:2]])


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """torch logs and prints the graph that it could not capture; its exception holds the reason."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _export(module: nn.Module, example: Feeds, inputs: tuple[Port, ...]) -> ExportedProgram:
    # A view as example input ends in a guard on its base that later stages cannot read: clone.
    args = tuple(example[port.name].clone() for port in inputs)
    dynamic: tuple = tuple(dict.fromkeys(port.dynamic, Dim.DYNAMIC) for port in inputs)
    if not isinstance(module, fx.GraphModule):
        dynamic = (dynamic,)  # the flat forward takes *args: one entry that holds them all
    # The math kernel is the one that decomposes with symbolic shapes.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        program = torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)
        # An operator that works in place would overwrite values that calibration reads again.
        return program.run_decompositions({}) if any(map(_is_in_place, program.graph.nodes)) else program


def _is_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


@contextmanager
def _forward_as(model: nn.Module, forward: Callable[..., tuple[Tensor, ...]]) -> Iterator[None]:
    """While it lasts, calling the model calls `forward`, which may itself call the model as it was.

    Patching the instance, where a wrapper module would do, keeps every parameter's name as the model has it.
    """
    original, patched_before = model.forward, "forward" in model.__dict__

    def flat(*args: Tensor) -> tuple[Tensor, ...]:
        model.forward = original
        try:
            return forward(*args)
        finally:
            model.forward = flat

    model.forward = flat
    try:
        yield
    finally:
        if patched_before:
            model.forward = original
        else:
            del model.forward


def _line(node: fx.Node, ports: Mapping[fx.Node, str], names: Mapping[str, str]) -> str:
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    kind = _kind(node.meta.get("val"), names)
    if node.op == "placeholder":
        return f"%{node.name}: {kind} = input {ports[node]}"
    if node.op == "get_attr":
        return f"%{node.name}: {kind} = weight {node.target}"
    arguments = ", ".join([*map(_argument, node.args), *(f"{k}={_argument(v)}" for k, v in node.kwargs.items())])
    return f"%{node.name}: {kind} = {str(node.target).removeprefix('aten.')}({arguments})"


def _argument(value: object) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_argument, value))}]"
    return str(value)


def _kind(value: object, names: Mapping[str, str]) -> str:
    """`float32[batch, 4]`; a size that is no input's is `?`."""
    if not isinstance(value, Tensor):
        return "number" if isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) else "values"
    sizes = [str(size) if isinstance(size, int) else names.get(str(size), "?") for size in value.shape]
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(sizes)}]"
