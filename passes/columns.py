"""What reads the channels of a group: sites as matrices, the unit of each column, and those that stay, refitted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup
from compressor.graph import Graph
from compressor.passes.gram import Gram
from compressor.passes.removal import refitted
from compressor.passes.solve import BlockSolver
from compressor.sites import WeightSite


@dataclass(frozen=True, eq=False)
class Reader:
    """A group as one site reads it. owner (d,): the unit that each column of the site's matrix belongs to, or -1."""

    group: ChannelGroup
    owner: Tensor

    def kept(self, keep: Tensor) -> Tensor:
        """(d,) bool: the columns that stay when the units `keep` (units,) stay."""
        return (self.owner < 0) | keep[self.owner.clamp(min=0)]


def readers(graph: Graph, groups: Iterable[ChannelGroup]) -> dict[WeightSite, list[Reader]]:
    """The sites that contract channels of the groups, in the order of the graph, with the groups that each reads."""
    found: dict[str, list[Reader]] = {}
    sites = {site.name: site for site in graph.sites if not site.conflict}
    for group in groups:
        for one in group.consumers:
            site = sites.get(one.name)
            if site is not None and one.axis == site.axis:
                # Columns of a convolution are ordered (kernel, C_in).
                found.setdefault(one.name, []).append(Reader(group, one.owner.repeat(site.d // site.K)))
    return {site: found[name] for name, site in sites.items() if name in found}


def columns_kept(reading: Iterable[Reader], keep: Mapping[str, Tensor]) -> Tensor:
    """(d,) bool: the columns that no group of a site gives up; keep: by group, those that lose nothing left out."""
    each = [one.kept(keep[one.group.name]) if one.group.name in keep else one.owner >= -1 for one in reading]
    return torch.stack(each).all(0)


@dataclass(frozen=True, kw_only=True)
class ColumnSolver(BlockSolver):
    """Leaves of each site the columns that stay, refitted to its outputs by least squares.

    options: of the pass (match, bias, damping, reconstruct). columns: (d,) bool by site; all of the others'.
    is_refitted: else the columns stay as they are.
    """

    options: Any
    columns: Mapping[WeightSite, Tensor]
    is_refitted: bool = True

    def _solve_groups(self, site: WeightSite, T: Tensor, damped: list[Gram]) -> Tensor:
        keep = self.columns.get(site, torch.ones(site.d, dtype=torch.bool))
        if not self.is_refitted:
            return T * keep
        return torch.stack([refitted(T_g, gram.H, keep) for T_g, gram in zip(T, damped, strict=True)])
