"""The model-level graph: an ATen graph whose parameters are the model's own tensors.

A pass that writes a weight writes the module's weight; a pass that changes the graph calls `restructured()`, and the
exported program is made anew from the graph when it is next needed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from compressor.errors import InternalError, SourceError
from compressor.sites import Orphan, WeightSite, find_orphans, find_sites

Feeds = Mapping[str, Tensor]  # input name -> tensor
Run = Callable[[Feeds], dict[str, Tensor]]  # one call of a graph, or of a runtime's session


@dataclass(frozen=True)
class Port:
    """One input or output: its name, and the axes that may vary with the symbol each is called by."""

    name: str
    dynamic: Mapping[int, str]

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

    @cached_property
    def sites(self) -> list[WeightSite]:
        """Every weight the graph contracts, in order of first use."""
        return find_sites(self.module)

    @cached_property
    def orphans(self) -> list[Orphan]:
        """Every weight of two or more axes that is not a site, with the reason."""
        return find_orphans(self.module, self.sites)

    def run(self, feeds: Feeds) -> dict[str, Tensor]:
        """Outputs by name for inputs by name; no gradients."""
        with torch.no_grad():
            values = self.module(*(feeds[port.name] for port in self.inputs))
        return dict(zip((port.name for port in self.outputs), values, strict=True))

    def restructured(self) -> None:
        """To be called by a pass that has added, removed or rewired nodes or parameters."""
        self.module.graph.lint()
        self.module.recompile()
        self._program = None
        self.__dict__.pop("sites", None)
        self.__dict__.pop("orphans", None)

    def program(self) -> ExportedProgram:
        """The exported program of the graph as it stands now."""
        if self._program is None:
            self._program = _export(self.module, self.example, self.inputs)
        return self._program

    def verify(self) -> None:
        """Raise InternalError unless the graph is legal: it lints, and every site's weight is finite."""
        self.module.graph.lint()
        for site in self.sites:
            if not torch.isfinite(site.weight).all():
                raise InternalError(f"{site.name} holds NaN or Inf after a pass")

    def text(self) -> str:
        """The graph as stable text, one line per value: name, dtype, shape, op, arguments."""
        return "\n".join(_line(node, self.module) for node in self.module.graph.nodes if node.users or node.op == "output")


def lower(model: nn.Module, forward: Callable[..., tuple[Tensor, ...]], example: Feeds,
          inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> Graph:
    """Capture a model as a Graph.

    forward: takes the inputs in order as plain tensors, returns the outputs in order; it calls the model.
    example: one tensor per input; an axis that varies must not have length 1 in it.
    Raises SourceError with torch's reason when the model cannot be captured.
    """
    with _forward_as(model, forward):
        try:
            program = _export(model, example, inputs)
        except Exception as error:
            raise SourceError(
                f"torch.export cannot capture {type(model).__name__}",
                found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
                hint="a forward without data-dependent Python branches; COMPRESS_DEBUG=1 shows torch's full report",
            ) from error
    return Graph(program, inputs, outputs, example)


def _export(module: nn.Module, example: Feeds, inputs: tuple[Port, ...]) -> ExportedProgram:
    # A view as example input ends in a guard on its base that later stages cannot read: clone.
    args = tuple(example[port.name].clone() for port in inputs)
    dynamic: tuple = tuple({axis: Dim.DYNAMIC for axis in port.dynamic} for port in inputs)
    if not isinstance(module, fx.GraphModule):
        dynamic = (dynamic,)  # the flat forward takes *args: one entry that holds them all
    # The math kernel is the one that decomposes with symbolic shapes.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.export.export(module, args, dynamic_shapes=dynamic, strict=False)


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


def _line(node: fx.Node, module: fx.GraphModule) -> str:
    if node.op == "output":
        return f"return {node.args[0]}"
    value = node.meta.get("val")
    kind = f"{str(value.dtype).removeprefix('torch.')}{_shape(value)}" if isinstance(value, Tensor) else ""
    if node.op == "placeholder":
        return f"%{node.name}: {kind} = input"
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


def _shape(value: Tensor) -> str:
    return f"[{', '.join(str(size) if isinstance(size, int) else '?' for size in value.shape)}]"
