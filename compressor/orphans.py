"""Weights that are no site, and why: looked up, moved, or contracted in a way this compiler does not know."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compressor.sites import WeightSite, read, readers_of

aten = torch.ops.aten

_MOVEMENTS = (
    aten.embedding.default, aten.cat.default, aten.stack.default, aten.index.Tensor, aten.index_select.default,
    aten.repeat.default, aten.clone.default, aten.reshape.default, aten.pad.default, aten.gather.default,
    aten.upsample_bicubic2d.vec, aten.upsample_bilinear2d.vec, aten.to.dtype, aten._to_copy.default,
)  # fmt: skip

LOOKED_UP = "looked up, not contracted"


@dataclass(frozen=True)
class Orphan:
    """A weight of two or more axes that is no site, and why.

    is_refused: an operator contracts it in a way this compiler does not know, so a request for "every weight" is not
        met.
    is_table: embeddings look its rows up, and nothing else reads it.
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    is_refused: bool = False

    @property
    def is_table(self) -> bool:
        return self.reason == LOOKED_UP


def find_orphans(module: fx.GraphModule, sites: Iterable[WeightSite]) -> list[Orphan]:
    """Every parameter of two or more axes that no site owns, with what reads it."""
    owned = {id(site.weight) for site in sites}
    fixed = _fixed(module)
    readers: dict[int, set[Any]] = {}
    contracting: dict[int, set[Any]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor):
            key = id(read(module, node))
            readers.setdefault(key, set()).update(user.target for user in readers_of(node))
            contracting.setdefault(key, set()).update(_contracting(node, fixed))
    return [
        Orphan(name, tuple(weight.shape), *_reason(readers.get(id(weight), set()), contracting.get(id(weight), set())))
        for name, weight in module.named_parameters()
        if weight.ndim >= 2 and id(weight) not in owned
    ]


def _fixed(module: fx.GraphModule) -> set[fx.Node]:
    """Values made of weights and constants alone."""
    fixed: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and fixed.issuperset(node.all_input_nodes)):
            fixed.add(node)
    return fixed


def _contracting(node: fx.Node, fixed: set[fx.Node]) -> Iterable[Any]:
    """Operators that sum over a weight, or over what is made of it before any activation joins in (`W * mask`)."""
    for user in readers_of(node):
        if not _moves_or_maps(user.target):
            yield user.target
        elif user in fixed:
            yield from _contracting(user, fixed)


def _reason(readers: set[Any], contracting: set[Any]) -> tuple[str, bool]:
    if not readers:
        return "read by nothing", False
    if readers <= {aten.embedding.default}:
        return LOOKED_UP, False
    if not contracting:
        return f"read by {_names(readers)}: not contracted", False
    if contracting.isdisjoint(readers):
        return f"changed by {_names(readers)} before {_names(contracting)} contracts it", True
    return f"read by {_names(readers)}, which is not a contraction this compiler knows", True


def _names(operators: Iterable[Any]) -> str:
    return ", ".join(sorted(str(operator).removeprefix("aten.") for operator in operators))


def _moves_or_maps(reader: Any) -> bool:
    """Whether an operator only moves or maps single values, so that no sum runs over the weight."""
    if not isinstance(reader, torch._ops.OpOverload):
        return False
    return reader.is_view or torch.Tag.pointwise in reader.tags or reader in _MOVEMENTS
