"""Weight sites: each weight of a graph as its consumers contract it.

A contraction is read from the ATen operator, never from a module's class, so `nn.Linear`, GPT-2's `Conv1D` and a
custom module that multiplies by a parameter all look alike. The cases:

    linear(x, W)                  W is (m, d)                       contracted axis 1
    addmm(b, x, W), x @ W         W is (d, m)                       contracted axis 0
    x @ W.T                       W is (m, d)                       contracted axis 1
    conv1d / conv2d(x, W)         W is (m, C_in / groups, *kernel)  contracted axis 1, at each kernel position

As a matrix, a convolution's columns are ordered (kernel, C_in), so groups of M neighbours lie along C_in: the axis a
sparse kernel reads.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, fx, nn

from compressor.patches import CONVS, conv_arguments, output_size, patches
from compressor.stored import stored

aten = torch.ops.aten

Layout = Literal["rows", "columns", "kernel"]
Role = Literal["", "stem", "head", "tied"]

_BIASES = {aten.linear.default: 2, aten.addmm.default: 0, **dict.fromkeys(CONVS, 2)}
BATCH_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
_MATMULS = (aten.mm.default, aten.matmul.default)
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default, aten.numpy_T.default, aten.mT.default)
_ALIASES = (aten.detach.default, aten.alias.default, aten.contiguous.default, aten.dropout.default)


@dataclass(frozen=True, eq=False)
class Use:
    """One consumer of a weight: the node that contracts it, and the activation it is contracted with."""

    node: fx.Node
    activation: fx.Node


@dataclass(frozen=True, eq=False)
class Offset:
    """What is added to every output of a site: sign * tensor (m,).

    A bias; or, where a batch normalization alone reads the outputs, less the running mean that it subtracts.
    """

    tensor: Tensor
    sign: int

    def add(self, delta: Tensor) -> None:
        """Move the outputs by delta (m,), in place."""
        with torch.no_grad():
            self.tensor.add_(self.sign * delta)


@dataclass(frozen=True, eq=False)
class WeightSite:
    """One weight as its consumers contract it.

    name: the parameter's qualified name. op: the ATen operator. weight: the parameter itself.
    layout: "rows" (m, d), "columns" (d, m) or "kernel" (m, d / groups, *kernel).
    role: why it is left dense unless named ("stem", "head", "tied"), or "".
    other_users: what else reads the same tensor (an embedding lookup), by operator name.
    conflict: why no pass may write it, or "".
    offset: what is added to its outputs and to no others, or None.
    """

    name: str
    op: str
    weight: Tensor
    layout: Layout
    uses: tuple[Use, ...]
    groups: int = 1
    role: Role = ""
    other_users: tuple[str, ...] = ()
    conflict: str = ""
    offset: Offset | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    @property
    def axis(self) -> int:
        """The contracted axis of the stored tensor."""
        return 0 if self.layout == "columns" else 1

    @property
    def K(self) -> int:
        """Length of the contracted axis (C_in / groups for a convolution)."""
        return self.weight.shape[self.axis]

    @property
    def d(self) -> int:
        """Columns of the matrix: K times the kernel positions."""
        return self.weight[0].numel() if self.layout == "kernel" else self.K

    @property
    def m(self) -> int:
        """Rows of the matrix, over all groups: the outputs."""
        return self.weight.shape[1] if self.layout == "columns" else self.weight.shape[0]

    def matrix(self) -> Tensor:
        """A float32 copy as (groups, m / groups, d), columns ordered (kernel, C_in)."""
        W = self.weight.detach()
        if self.layout == "columns":
            W = W.T
        elif self.layout == "kernel":
            W = W.movedim(1, -1).reshape(self.m, self.d)  # (m, kernel * C_in)
        return W.reshape(self.groups, self.m // self.groups, self.d).to(torch.float32, copy=True).contiguous()

    def write(self, W: Tensor) -> None:
        """Store a matrix (groups, m / groups, d) in the weight, in place: every alias sees it."""
        W = W.reshape(self.m, self.d)
        if self.layout == "columns":
            W = W.T
        elif self.layout == "kernel":
            W = W.reshape(self.m, *self.weight.shape[2:], self.K).movedim(-1, 1)
        with torch.no_grad():
            self.weight.copy_(W)

    def columns(self, use: Use, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The activation as the rows the matrix multiplies: (groups, n, d), ordered as `matrix`.

        positions: for a convolution, the flat (image, row, column) output positions to take; all when None.
        """
        if self.layout != "kernel":
            return x.reshape(1, -1, self.d)
        seen = patches(self.weight, *conv_arguments(use.node), self._batched(x), positions)  # (n, kernel, C)
        n, kernel, _ = seen.shape
        return seen.reshape(n, kernel, self.groups, self.K).permute(2, 0, 1, 3).reshape(self.groups, n, self.d)

    def outputs(self, use: Use, y: Tensor) -> Tensor:
        """What a use computes, or its gradient, as the rows that the matrix makes: (groups, n, m / groups)."""
        if self.layout == "kernel":
            y = self._batched(y).movedim(1, -1)
        return y.reshape(-1, self.groups, self.m // self.groups).movedim(0, 1)

    def n_positions(self, use: Use, x: Tensor) -> int:
        """How many rows `columns` has when every position is taken."""
        if self.layout != "kernel":
            return x.numel() // self.d
        stride, padding, dilation = conv_arguments(use.node)
        x = self._batched(x)
        return x.shape[0] * math.prod(output_size(x, self.weight, stride, padding, dilation))

    def _batched(self, x: Tensor) -> Tensor:
        """A convolution's input with its batch axis, which an operator may do without."""
        return x if x.ndim == self.weight.ndim else x[None]


# *** finding ***


@dataclass
class _Found:
    name: str
    op: str
    layout: Layout
    groups: int
    uses: list[Use] = field(default_factory=list)
    layouts: set[tuple[Layout, int]] = field(default_factory=set)


def find_sites(module: fx.GraphModule) -> list[WeightSite]:
    """Every weight the graph contracts, in order of first use; one site per tensor, however many consumers."""
    found: dict[int, _Found] = {}
    for node in module.graph.nodes:
        match = _contraction(node)
        if match is None:
            continue
        weight_node, activation, layout, groups = match
        if not isinstance(read(module, weight_node), nn.Parameter):
            continue
        site = found.setdefault(
            id(read(module, weight_node)),
            _Found(str(weight_node.target), str(node.target).removeprefix("aten."), layout, groups),
        )
        site.uses.append(Use(node, activation))
        site.layouts.add((layout, groups))
    roles = _roles(module, found)
    return [_site(module, key, one, roles) for key, one in found.items()]


def _site(module: fx.GraphModule, key: int, found: _Found, roles: dict[int, Role]) -> WeightSite:
    weight = stored(module, found.name)
    others = tuple(sorted(_other_users(module, key, {use.node for use in found.uses})))
    conflict = ""
    if len(found.layouts) > 1:
        conflict = "shared by consumers that contract it along different axes"
    role: Role = "tied" if others else roles.get(key, "")
    offset = _offset(module, [use.node for use in found.uses])
    return WeightSite(
        found.name, found.op, weight, found.layout, tuple(found.uses), found.groups, role, others, conflict, offset
    )


def _contraction(node: fx.Node) -> tuple[fx.Node, fx.Node, Layout, int] | None:
    """(weight, activation, layout, groups) when the node multiplies an activation by a stored weight."""
    if node.op != "call_function":
        return None
    args = node.args
    if node.target is aten.linear.default:
        return _matrix_use(args[1], args[0], "rows")
    if node.target is aten.addmm.default:
        return _matrix_use(args[2], args[1], "columns")
    if node.target in _MATMULS:
        return _matrix_use(args[1], args[0], "columns")
    if node.target in CONVS:
        weight, _ = _weight(args[1])
        groups = args[6] if len(args) > 6 else 1
        return (weight, args[0], "kernel", groups) if weight else None  # type: ignore[return-value]
    return None


def _matrix_use(value: object, activation: object, layout: Layout) -> tuple[fx.Node, fx.Node, Layout, int] | None:
    weight, is_transposed = _weight(value)
    if weight is None or not isinstance(activation, fx.Node) or _weight(activation)[0] is not None:
        return None
    if weight.meta["val"].ndim != 2:
        return None
    if is_transposed:
        layout = "columns" if layout == "rows" else "rows"
    return weight, activation, layout, 1


def _weight(value: object) -> tuple[fx.Node | None, bool]:
    """The get_attr behind a value and whether an odd number of 2-D transposes lies between."""
    is_transposed = False
    while isinstance(value, fx.Node) and value.op == "call_function":
        if value.target in _TRANSPOSES and value.meta["val"].ndim == 2:
            is_transposed ^= _swaps(value)
        elif value.target not in _ALIASES:
            return None, False
        value = value.args[0]
    if isinstance(value, fx.Node) and value.op == "get_attr" and isinstance(value.meta.get("val"), Tensor):
        return value, is_transposed
    return None, False


def _swaps(transpose: fx.Node) -> bool:
    """Whether it swaps the axes of a matrix; `permute(0, 1)` and `transpose(0, -2)` do not."""
    probe = torch.empty(2, 3, device="meta")
    return bool(transpose.target(probe, *transpose.args[1:]).shape != probe.shape)  # type: ignore[operator]


def read(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a get_attr reads."""
    return stored(module, str(node.target))


def _offset(module: fx.GraphModule, consumers: list[fx.Node]) -> Offset | None:
    """The bias, or the running mean, that is read by these consumers of one weight and by nothing else."""
    found = [_bias_of(node) or _mean_of(node) for node in consumers]
    values = [read(module, one[0]) for one in found if one]
    if len(values) < len(consumers) or any(value is not values[0] for value in values) or values[0].ndim != 1:
        return None
    readers = [one[1] for one in found if one]
    if _other_users(module, id(values[0]), set(readers)):
        return None
    return Offset(values[0], 1 if readers == consumers else -1)


def _bias_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(bias, node) where the node adds a stored bias as it is."""
    at = _BIASES.get(node.target)  # type: ignore[call-overload]
    bias = node.args[at] if at is not None and len(node.args) > at else None
    return (bias, node) if _is_stored(bias) and not node.kwargs else None  # type: ignore[return-value]


def _mean_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(running mean, normalization) where a batch normalization alone reads what the node computes."""
    readers = list(node.users)
    if len(readers) != 1 or readers[0].target not in BATCH_NORMS:
        return None
    mean = readers[0].args[3]
    return (mean, readers[0]) if _is_stored(mean) else None  # type: ignore[return-value]


def _is_stored(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _other_users(module: fx.GraphModule, key: int, consumers: set[fx.Node]) -> set[str]:
    """Operators that read the same tensor and are not its contractions."""
    return {
        str(user.target).removeprefix("aten.")
        for node in module.graph.nodes
        if node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor) and id(read(module, node)) == key
        for user in readers_of(node)
        if user not in consumers
    }


def readers_of(node: fx.Node) -> Iterable[fx.Node]:
    """What reads a value, through transposes and aliases of it."""
    for user in node.users:
        if user.target in _TRANSPOSES or user.target in _ALIASES:
            yield from readers_of(user)
        else:
            yield user


def _roles(module: fx.GraphModule, found: dict[int, _Found]) -> dict[int, Role]:
    """The stem: a convolution with no site before it. The head: a site with none between it and the first output."""
    nodes = list(module.graph.nodes)
    consumers = {use.node: key for key, site in found.items() for use in site.uses}
    above: set[fx.Node] = set()  # a site lies before the node
    for node in nodes:
        if any(source in above or source in consumers for source in node.all_input_nodes):
            above.add(node)
    output = nodes[-1].args[0][0]
    below: set[fx.Node] = set()  # a site lies after the node
    scored: set[fx.Node] = set()  # the node reaches the first output
    for node in reversed(nodes):
        if any(user in below or user in consumers for user in node.users):
            below.add(node)
        if node is output or any(user in scored for user in node.users):
            scored.add(node)
    roles: dict[int, Role] = {}
    for node, key in consumers.items():
        if node not in below and node in scored:
            roles[key] = "head"
        elif node not in above and node.target in CONVS:
            roles[key] = "stem"
    return roles
