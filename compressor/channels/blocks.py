"""Residual blocks, x + f(x), and a graph without some of them: x goes on as it is.

They are found from the graph: an addition one side of which the other is made from, through stored weights. Additions
whose branches read weights of one prefix (`transformer.h.3`: attention, then MLP), or of one within it, are one block.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, fx

from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.segments import ancestors

ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Residual:
    """One addition: what goes on when the branch is gone, and the weights that the branch alone reads."""

    addition: fx.Node
    stream: fx.Node
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A part of a graph that can be left out.

    name: the common prefix of its weights, or the addition's where they have none. residuals: its additions, in order.
    parameters: what goes with it.
    """

    name: str
    residuals: tuple[Residual, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(name for one in self.residuals for name in one.parameters)


def find_blocks(graph: Graph) -> list[Block]:
    """Every residual block, in the order of the graph."""
    found: dict[str, list[Residual]] = {}
    for node in graph.module.graph.nodes:
        if node.op == "call_function" and node.target in ADDITIONS and (one := _residual(node)):
            found.setdefault(_prefix(one.parameters) or node.name, []).append(one)
    outer = {name: min((one for one in found if f"{name}.".startswith(f"{one}.")), key=len) for name in found}
    names = dict.fromkeys(outer.values())
    return [Block(name, tuple(one for own in found if outer[own] == name for one in found[own])) for name in names]


def drop(graph: Graph, names: Sequence[str]) -> None:
    """Leave blocks out of a graph, with the weights and the states (key-value caches) that they alone use.

    Raises RecipeError when a name is no block's, or when an output that is no state comes from within a block; then
    nothing was changed.
    """
    blocks = {block.name: block for block in find_blocks(graph)}
    for name in names:
        if name not in blocks:
            near = difflib.get_close_matches(name, blocks, n=3, cutoff=0.0)
            raise RecipeError(f"no residual block is named {name!r}", found=f"the nearest are {', '.join(near)}")
    residuals = [one for name in names for one in blocks[name].residuals]
    outputs = _left(graph, residuals)
    stays = {one.addition: one.stream for one in residuals}
    for addition in stays:
        addition.replace_all_uses_with(_what_stays(addition, stays))
    _end_with(graph, outputs)
    # Neither a dropout, which does nothing here, nor a check of what is gone may hold a branch alive.
    graph.module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    _forget_inputs(graph)
    _forget_weights(graph.module)
    graph.restructured()
    graph.changed(lambda other: drop(other, names))


# *** finding ***


def _residual(node: fx.Node) -> Residual | None:
    sides = [one for one in node.args[:2] if isinstance(one, fx.Node)]
    if len(sides) < 2 or _shape(sides[0]) != _shape(sides[1]) or node.kwargs:
        return None
    above = [ancestors([side]) for side in sides]
    for stream, branch, before in ((sides[0], sides[1], above[0]), (sides[1], sides[0], above[1])):
        inside = ancestors([branch])
        if stream in inside and stream is not branch:
            alone = _alone(node, inside - before)
            weights = tuple(str(one.target) for one in node.graph.nodes if one in alone and _is_weight(one))
            return Residual(node, stream, weights) if weights else None
    return None


def _alone(addition: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """What of a branch goes with it: values that are read by the addition, through others that go, and as states."""
    found = {addition}
    for node in reversed(addition.graph.nodes):
        if node in inside and all(user in found or user.op == "output" or not user.users for user in node.users):
            found.add(node)
    return found - {addition}


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    return str(tuple(value.shape)) if isinstance(value, Tensor) else ""


def _is_weight(node: fx.Node) -> bool:
    """Whether it is a stored matrix or vector in floating point that something reads."""
    value = node.meta.get("val")
    return node.op == "get_attr" and isinstance(value, Tensor) and value.is_floating_point() and bool(node.users)


def _prefix(names: Sequence[str]) -> str:
    """The longest common prefix, in whole parts of a qualified name, of what holds some weights."""
    holders = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*holders, strict=False))
    return ".".join(parts[0] for parts in shared)


# *** leaving out ***


def _left(graph: Graph, residuals: Iterable[Residual]) -> list[bool]:
    """Which outputs are still made when the branches are gone. Raises RecipeError when one that is no state is not."""
    output = graph.module.graph.output_node()
    stays: dict[fx.Node, fx.Node] = {one.addition: one.stream for one in residuals}
    live = _live(output.args[0][0], stays)  # type: ignore[index, arg-type]
    found = []
    for port, node in zip(graph.outputs, output.args[0], strict=True):  # type: ignore[arg-type]
        inside = isinstance(node, fx.Node) and node not in live and port.is_state
        found.append(not inside)
    for port, node in zip(graph.outputs, output.args[0], strict=True):  # type: ignore[arg-type]
        if not port.is_state and any(_within(one, node) for one in residuals):
            raise RecipeError(f"the output {port.name} comes from within a block", hint="another block")
    return found


def _within(residual: Residual, node: fx.Node) -> bool:
    """Whether a value is made inside of a branch."""
    sides = [one for one in residual.addition.args[:2] if one is not residual.stream]
    return node in ancestors(sides) - ancestors([residual.stream])  # type: ignore[arg-type]


def _live(node: fx.Node, stays: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """What the scored output still depends on."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = _what_stays(waiting.pop(), stays)
        if one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    return found


def _what_stays(node: fx.Node, stays: dict[fx.Node, fx.Node]) -> fx.Node:
    while node in stays:
        node = stays[node]
    return node


def _end_with(graph: Graph, left: Sequence[bool]) -> None:
    output = graph.module.graph.output_node()
    values = [node for node, stays in zip(output.args[0], left, strict=True) if stays]  # type: ignore[arg-type]
    output.args = (tuple(values),)
    graph.module.graph.set_codegen(fx.graph.CodeGen())  # torch's own would still expect every input and output
    if isinstance(output.meta.get("val"), (list, tuple)):
        output.meta["val"] = [one for one, stays in zip(output.meta["val"], left, strict=True) if stays]
    graph.outputs = tuple(port for port, stays in zip(graph.outputs, left, strict=True) if stays)


def _forget_inputs(graph: Graph) -> None:
    """States that nothing reads any more are no inputs."""
    placeholders = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    stays = [bool(node.users) or not port.is_state for node, port in zip(placeholders, graph.inputs, strict=True)]
    for node, kept in zip(placeholders, stays, strict=True):
        if not kept:
            graph.module.graph.erase_node(node)
    graph.inputs = tuple(port for port, kept in zip(graph.inputs, stays, strict=True) if kept)
    graph.example = {port.name: graph.example[port.name] for port in graph.inputs}


def _forget_weights(module: fx.GraphModule) -> None:
    """Parameters and buffers that nothing reads any more."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())]:
        if name not in read:
            holder, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(holder), leaf)
