"""Smoothing (Xiao et al. 2023, "SmoothQuant"): channels that stand out are made smaller before they are rounded.

One scale rounds a whole activation, so one loud channel costs all others their codes. Dividing each channel by a factor
in the normalization that makes it, and multiplying the columns of the weights that read it, changes nothing that the
model computes, moves no zero, and needs no operator of its own. It also brings down the weights of quiet channels,
which a refit after pruning may have made large.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, fx

from compressor.graph import Feeds, Graph
from compressor.progress import Progress
from compressor.sites import WeightSite
from compressor.watching import watch

aten = torch.ops.aten

LEAST = 1e-4
_VIEWS = (aten.view.default, aten.reshape.default)


@dataclass(frozen=True)
class Fold:
    """A normalization, its gain and bias (d,), and the sites that alone read what it makes."""

    norm: fx.Node
    affine: tuple[Tensor, ...]
    sites: tuple[WeightSite, ...]


def factors(x: Tensor, w: Tensor, strength: float) -> Tensor:
    """What to divide each channel by (d,): x^strength / w^(1 - strength), and 1 for a channel that is always silent.

    x, w: the largest magnitude of each channel, and of the weights that read it; tiny weights count as LEAST of the
    largest, so that a channel that nothing reads is made small too.
    """
    w = w.clamp_min(LEAST * float(w.max()))
    s = x**strength / w ** (1 - strength)
    return torch.where(torch.isfinite(s) & (s > 0), s, 1)


def smooth(
    graph: Graph, sites: Sequence[WeightSite], batches: Sequence[Feeds], strength: float, progress: Progress
) -> list[Fold]:
    """Fold the factors into normalizations and weights, in place; returns where."""
    found = list(folds(graph, sites))
    peaks = {fold.norm: torch.zeros(fold.affine[0].shape) for fold in found}

    def loudest(norm: fx.Node) -> "_Loudest":
        return _Loudest(peaks[norm])

    watch(graph, batches, {fold.norm: loudest(fold.norm) for fold in found}, progress)
    for fold in found:
        matrices = [site.matrix() for site in fold.sites]  # (1, m, d)
        w = torch.stack([W.abs().amax((0, 1)) for W in matrices]).amax(0)  # (d,)
        s = factors(peaks[fold.norm], w, strength)
        with torch.no_grad():
            for one in fold.affine:
                one.div_(s)
        for site, W in zip(fold.sites, matrices, strict=True):
            site.write(W * s)
    return found


@dataclass(frozen=True)
class _Loudest:
    peak: Tensor

    def __call__(self, x: Tensor) -> None:
        torch.maximum(self.peak, x.detach().float().abs().flatten(0, -2).amax(0), out=self.peak)


def folds(graph: Graph, sites: Sequence[WeightSite]) -> Iterator[Fold]:
    """Every layer normalization whose gain is its own and whose readers are products with these sites alone."""
    by_node = {use.node: site for site in sites for use in site.uses if _is_plain(site)}
    for node in graph.module.graph.nodes:
        if node.target is not aten.layer_norm.default or len(node.args) < 3:
            continue
        affine = [one for one in node.args[2:4] if one is not None]
        readers = list(_readers(node))
        is_own = all(isinstance(one, fx.Node) and one.op == "get_attr" and set(one.users) == {node} for one in affine)
        if affine and is_own and readers and all(reader in by_node for reader in readers):
            tensors = tuple(graph.module.get_parameter(str(one.target)) for one in affine)
            if _are_read_once(graph, tensors) and tensors[0].ndim == 1:
                yield Fold(node, tensors, tuple(dict.fromkeys(by_node[reader] for reader in readers)))


def _is_plain(site: WeightSite) -> bool:
    return len(site.uses) == 1 and not site.other_users and site.layout != "kernel"


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a value, looking through views that leave the last axis as it is."""
    for user in node.users:
        if user.target in _VIEWS and user.meta["val"].shape[-1] == node.meta["val"].shape[-1]:
            yield from _readers(user)
        else:
            yield user


def _are_read_once(graph: Graph, tensors: Sequence[Tensor]) -> bool:
    """Whether no two nodes fetch one of these tensors."""
    nodes = [node for node in graph.module.graph.nodes if node.op == "get_attr"]
    fetched = [id(attrgetter(str(node.target))(graph.module)) for node in nodes]
    return all(fetched.count(id(one)) == 1 for one in tensors)
