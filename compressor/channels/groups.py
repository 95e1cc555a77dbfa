"""Channel groups: what must be removed together so that a smaller graph computes the same.

A unit is the least that can go: one hidden channel of an MLP, one channel of a convolution, a key-value head with the
query heads that read it. A group holds the units that own the same axes of the same tensors; each unit owns, of each
axis, some positions. `keep` (units,) is True where a unit is kept.

They are found from the graph alone (compressor/provenance), never from the classes or names of modules.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from compressor.errors import RecipeError
from compressor.provenance import Tracer
from compressor.provenance.statistics import SYMMETRIC
from compressor.provenance.tracer import Owner

if TYPE_CHECKING:
    from compressor.graph import Graph

Role = Literal["produces", "consumes", "follows"]
Kind = Literal["mlp", "heads", "conv", "width", "other"]


@dataclass(frozen=True, eq=False)
class Slice:
    """What the units of a group own of one tensor along one axis.

    name: the parameter's or buffer's qualified name (one name for tied ones), or the name of a state input or output.
    owner: (length of the axis,) int64, the unit that each position belongs to; -1 where it belongs to none of this
        group.
    role: "produces" for the outputs of a contraction or the columns of an embedding; "consumes" for the axis that a
        contraction sums over; "follows" for what is one value a channel (biases, normalizations, running statistics)
        and for states.
    is_state: whether it is an input or output of the graph (a key-value cache) instead of a tensor that it stores.
    """

    name: str
    axis: int
    owner: Tensor
    role: Role
    is_state: bool = False

    def kept(self, keep: Tensor) -> Tensor:
        """(length of the axis,) bool: the positions that stay when the units `keep` (units,) stay."""
        return (self.owner < 0) | keep[self.owner.clamp(min=0)]

    def positions(self, unit: int) -> Tensor:
        """The positions that one unit owns, int64, in order."""
        return (self.owner == unit).nonzero().flatten()


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that own the same axes of the same tensors.

    name: the first parameter that produces them, in the order of the graph; stable from run to run.
    kind: "mlp" between two matrices, "heads" through an attention, "conv" made by convolutions, "width" a stream that
        blocks add to, "other" for what is none of these.
    units: how many there are. slices: parameters and buffers in the order of the graph, then states.
    frozen: why none of them can be removed, or ""; ordered: why they cannot change places, or "".
    components: (units,) int64, what the graph's tracer calls each.
    """

    name: str
    kind: Kind
    units: int
    slices: tuple[Slice, ...]
    frozen: str = ""
    ordered: str = ""
    components: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), repr=False)

    @property
    def producers(self) -> tuple[Slice, ...]:
        return tuple(one for one in self.slices if one.role == "produces")

    @property
    def consumers(self) -> tuple[Slice, ...]:
        return tuple(one for one in self.slices if one.role == "consumes")

    def all_kept(self) -> Tensor:
        """(units,) bool, all True: a `keep` to begin from."""
        return torch.ones(self.units, dtype=torch.bool)


def find_groups(graph: "Graph") -> list[ChannelGroup]:
    """Every group that something produces, in the order of the graph; those that cannot be cut have a reason.

    Raises SourceError when a shape depends on data.
    """
    return list(_groups(graph.tracer))


def find_orders(graph: "Graph") -> list[ChannelGroup]:
    """Groups of units that can change places, unless `ordered` says why not, in the order of the graph.

    What is inside of a head is a group of its own, of the kind "heads", since it cannot leave the head. Raises
    SourceError when a shape depends on data.
    """
    return list(_groups(Tracer(graph.module, graph.inputs, graph.outputs, for_order=True)))


def unknown_group(name: str, groups: Iterable[str]) -> RecipeError:
    """What to raise for a name that no group has."""
    near = difflib.get_close_matches(name, list(groups), n=3, cutoff=0.0)
    found = f"the nearest are {', '.join(near)}" if near else "a graph without channel groups"
    return RecipeError(f"no channel group is named {name!r}", found=found, hint=near[0] if near else None)


def _groups(tracer: Tracer) -> Iterator[ChannelGroup]:
    seen = _Seen(tracer)
    taken: dict[str, int] = {}
    for components, owners in sorted(_footprints(tracer), key=lambda one: (one[1][0].start, one[0][0])):
        made = _group(seen, components, owners)
        if made is None:
            continue
        again = taken[made.name] = taken.get(made.name, 0) + 1
        yield made if again == 1 else dataclasses.replace(made, name=f"{made.name}#{again}")


def _footprints(tracer: Tracer) -> Iterator[tuple[np.ndarray, list[Owner]]]:
    """Components that own the same axes and have the same places, with these axes in the order of the graph."""
    owners = sorted(tracer.owners.values(), key=lambda owner: owner.start)
    keys = np.random.default_rng(0).integers(1, 2**62, len(owners))  # a set of axes is known by the sum of its keys
    footprint = tracer.labels.places(tracer.components)
    for owner, key in zip(owners, keys, strict=True):
        footprint[np.unique(_components(tracer, owner))] += key
    order = np.argsort(footprint, kind="stable")
    sets = np.split(order, np.flatnonzero(np.diff(footprint[order])) + 1)
    if tracer.labels.for_order:
        sets = [one for one in sets if len(one) > 1]  # what is alone has nobody to change places with
    firsts = np.array([components[0] for components in sets])
    owning: list[list[Owner]] = [[] for _ in sets]
    for owner in owners:
        for at in np.flatnonzero(np.isin(firsts, _components(tracer, owner))):
            owning[at].append(owner)
    return ((components, found) for components, found in zip(sets, owning, strict=True) if found)


def _components(tracer: Tracer, owner: Owner) -> np.ndarray:
    return tracer.components[owner.start : owner.start + owner.n]


MARKS = ("produced", "consumed", "rows", "heads", "convolved", "added")


class _Seen:
    """What was seen of the labels of a graph."""

    def __init__(self, tracer: Tracer):
        labels = tracer.labels
        self.tracer = tracer
        self.reasons = labels.reasons(tracer.components)
        self.orders = labels.reasons(tracer.components, but_for=SYMMETRIC)
        self.marked = {what: labels.marked(what) for what in MARKS}

    def has(self, what: str, owner: Owner, own: np.ndarray) -> bool:
        """Whether any of an owner's labels that belong to a group were seen so."""
        return bool(self.marked[what][owner.start : owner.start + owner.n][own].any())


def _group(seen: _Seen, components: np.ndarray, owners: list[Owner]) -> ChannelGroup | None:
    """The group of some components; None when nothing produces them."""
    owned = {owner: np.isin(_components(seen.tracer, owner), components) for owner in owners}
    roles = {owner: _role(seen, owner, own) for owner, own in owned.items()}
    producers = [owner for owner, role in roles.items() if role == "produces"]
    if not producers:
        return None
    first = _components(seen.tracer, producers[0])[owned[producers[0]]]
    _, at = np.unique(first, return_index=True)
    units = first[np.sort(at)]  # in the order of the first producer
    unit_of = np.full(int(seen.tracer.components.max()) + 1, -1)
    unit_of[units] = np.arange(len(units))
    slices = [
        Slice(
            owner.name,
            owner.axis,
            torch.from_numpy(unit_of[_components(seen.tracer, owner)]),
            roles[owner],
            owner.is_state,
        )
        for owner in sorted(owners, key=lambda owner: (owner.is_state, owner.start))
    ]
    frozen, ordered = (
        next((reasons[one] for one in units.tolist() if one in reasons), "") for reasons in (seen.reasons, seen.orders)
    )
    kind = _kind(seen, owned, producers)
    return ChannelGroup(producers[0].name, kind, len(units), tuple(slices), frozen, ordered, torch.from_numpy(units))


def _role(seen: _Seen, owner: Owner, own: np.ndarray) -> Role:
    if owner.is_state:
        return "follows"
    if seen.has("produced", owner, own):
        return "produces"
    return "consumes" if any(seen.has(what, owner, own) for what in ("consumed", "rows")) else "follows"


def _kind(seen: _Seen, owned: dict[Owner, np.ndarray], producers: Iterable[Owner]) -> Kind:
    def any_is(what: str) -> bool:
        return any(seen.has(what, owner, own) for owner, own in owned.items())

    if any_is("heads"):
        return "heads"
    if all(seen.has("convolved", owner, owned[owner]) for owner in producers):
        return "conv"
    if any_is("added"):
        return "width"
    return "mlp" if any_is("consumed") and not any_is("rows") else "other"
