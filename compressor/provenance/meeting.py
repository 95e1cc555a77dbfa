"""How channels meet: element by element, summed over, or mixed by statistics.

Three functions say everything that the rules of single operators need:

    join        values are combined element by element: channels that meet are one
    contract    ... and then summed over: channels along the summed axes end there
    mix         something is taken over axes that cannot do without a single element of them

A numbering over several axes (heads x what is in a head) stays as fine as it is until it meets one that does not vary
along all of them. Then its leading axis alone is cut: heads go whole, and what is inside a head stays. Where an order
is asked for, nothing is cut, and it stays fine; but what is inside a head can then change places only there.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from compressor.provenance.facets import Value, first_of, leading, settled, varying
from compressor.provenance.labels import NO_CHANNEL, Labels

WHOLE = "they lie inside of a channel that is kept or removed whole"

Shape = tuple[int, ...]


def join(labels: Labels, shape: Shape, values: Iterable[Value]) -> tuple[Tensor, ...]:
    """The facets of what values that broadcast to a shape become, element by element."""
    values = [value for value in values if any(n > 1 for n in value.shape)]
    facets = [
        _Facet(i, ids.expand(shape), _extent(ids.shape, shape, varying(ids)))
        for i, value in enumerate(values)
        for ids in value.facets
    ]
    meet = _meet_in_order if labels.for_order else _join_cluster
    made = (meet(labels, shape, values, cluster) for cluster in _clusters(facets))
    return tuple(ids for ids in made if ids is not None)


def contract(labels: Labels, shape: Shape, values: Sequence[Value], axes: Collection[int]) -> tuple[Tensor, ...]:
    """The facets of the product of values that broadcast to a shape, summed over some of its axes.

    axes: counted from 0; they are gone from what is returned.
    """
    for value in values:
        _mark(labels, shape, value, axes)
    found = [_outside(labels, ids, axes) for ids in join(labels, shape, values)]
    return tuple(_without(ids, axes) for ids in found if ids is not None)


def mix(labels: Labels, facets: Iterable[Tensor], axes: Collection[int], reason: str) -> tuple[Tensor, ...]:
    """The facets once nothing along the axes can be removed by itself; those that have nothing else are frozen."""
    found = []
    for ids in facets:
        if varying(ids) & set(axes):
            labels.place(ids, varying(ids) - set(axes))
            lead = leading(ids)
            if labels.for_order or lead in axes:
                labels.freeze(ids, reason)
            else:
                ids = collapse(labels, ids, lead)
        found.append(ids)
    return tuple(found)


def collapse(labels: Labels, ids: Tensor, axis: int) -> Tensor:
    """The labels, made one along every axis but one."""
    first = first_of(ids, varying(ids) - {axis})
    labels.unite(ids, first)
    return settled(first)


def _without(ids: Tensor, axes: Iterable[int]) -> Tensor:
    for axis in sorted(axes, reverse=True):
        ids = ids.select(axis, 0)
    return ids


def _outside(labels: Labels, ids: Tensor, axes: Collection[int]) -> Tensor | None:
    """What is left of a facet after a sum; None where it lay along the summed axes."""
    if not varying(ids) & set(axes):
        return ids
    labels.place(ids, varying(ids) - set(axes))
    if labels.for_order or varying(ids) <= set(axes):
        return None
    lead = leading(ids)
    found = collapse(labels, ids, lead)
    return None if lead in axes else found


def _mark(labels: Labels, shape: Shape, value: Value, axes: Collection[int]) -> None:
    """A stored tensor consumes channels along the summed axes, and produces them along the others."""
    for ids in value.facets if value.fixed else ():
        labels.mark("consumed" if _extent(ids.shape, shape, varying(ids)) <= set(axes) else "produced", ids)


# *** clusters: facets that share axes ***


@dataclass(frozen=True, eq=False)
class _Facet:
    value: int
    ids: Tensor
    axes: frozenset[int]


def _extent(own: Sequence[int], shape: Shape, axes: Iterable[int]) -> frozenset[int]:
    """Axes of a value, counted in the shape that it broadcasts to."""
    return frozenset(axis + len(shape) - len(own) for axis in axes)


def _clusters(facets: Iterable[_Facet]) -> list[list[_Facet]]:
    clusters: list[list[_Facet]] = []
    for facet in facets:
        touching = [one for one in clusters if any(facet.axes & other.axes for other in one)]
        merged = [other for one in touching for other in one] + [facet]
        clusters = [one for one in clusters if one not in touching] + [merged]
    return clusters


def _join_cluster(labels: Labels, shape: Shape, values: Sequence[Value], cluster: list[_Facet]) -> Tensor:
    axes = frozenset().union(*(facet.axes for facet in cluster))
    present = {facet.value for facet in cluster}
    strangers = [
        axes & _extent(value.shape, shape, _long(value.shape)) for i, value in enumerate(values) if i not in present
    ]
    if len({facet.axes for facet in cluster}) == 1 and not any(strangers):
        return _one(labels, [facet.ids for facet in cluster])
    lead = leading(max(cluster, key=lambda facet: len(facet.axes)).ids)
    for facet in cluster:
        if lead not in facet.axes:
            labels.freeze(facet.ids, WHOLE)
    joined = _one(labels, [collapse(labels, facet.ids, lead) for facet in cluster if lead in facet.axes])
    if any(lead in axes for axes in strangers):
        labels.freeze(joined, NO_CHANNEL)
    return joined


def _meet_in_order(labels: Labels, shape: Shape, values: Sequence[Value], cluster: list[_Facet]) -> Tensor | None:
    """Channels meet those at the same place, along whatever axes another value goes by; None where none are left."""
    axes = frozenset().union(*(facet.axes for facet in cluster))
    whole = [facet for facet in cluster if facet.axes == axes]
    for facet in cluster:
        if facet not in whole:
            labels.freeze(facet.ids, WHOLE)
    if not whole:
        return None
    joined = _one(labels, [facet.ids for facet in whole])
    present = {facet.value for facet in whole}
    strangers = axes & frozenset().union(
        *(_extent(one.shape, shape, _long(one.shape)) for i, one in enumerate(values) if i not in present)
    )
    if strangers == axes:
        labels.freeze(joined, NO_CHANNEL)
    elif strangers:
        labels.place(joined, strangers)
    return joined


def _long(shape: Shape) -> list[int]:
    return [axis for axis, n in enumerate(shape) if n > 1]


def _one(labels: Labels, facets: Sequence[Tensor]) -> Tensor:
    """Facets that vary along the same axes, made one; what a tensor owns stands for all."""
    first = next((ids for ids in facets if labels.is_owned(ids)), facets[0])
    for ids in facets:
        labels.unite(first, ids)
    return first
