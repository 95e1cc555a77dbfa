"""Numbers for channels: which of them turned out to be one, which must stay, and what was seen of them.

Label 0 stands for values that are no channel's. Labels are positive and given out in order, so that along the axis
they were made for they rise by one.

Two questions are asked of a graph, each of labels of its own. Which channels can go: then all that is left must be a
box, and what is inside of a head goes with it. And which can change places (`for_order`): only what every step treats
alike, which is told by places.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from compressor.provenance.facets import core

NO_CHANNEL = "they meet values that are no channels"


class Labels:
    """Gives labels out, and remembers what is said of them until everything has been said."""

    def __init__(self, for_order: bool = False) -> None:
        self.for_order, self.count = for_order, 1
        self._starts, self._owned = [0], [False]
        self._edges: list[np.ndarray] = []  # (2, n) each
        self._frozen: list[tuple[np.ndarray, str]] = []
        self._marks: dict[str, list[np.ndarray]] = defaultdict(list)
        self._places: list[np.ndarray] = []  # (2, n) each: a label, and a place that it has
        self._place_count = 0

    def new(self, n: int, owned: bool) -> Tensor:
        """n labels. owned: whether a tensor stands behind them, or a size that the graph spells out."""
        self._starts.append(self.count)
        self._owned.append(owned)
        self.count += n
        return torch.arange(self.count - n, self.count)

    def is_owned(self, ids: Tensor) -> bool:
        """Whether a tensor stands behind the first of these labels."""
        return self._owned[bisect_right(self._starts, int(core(ids).max())) - 1]

    def unite(self, a: Tensor, b: Tensor) -> None:
        """What meets is one; what meets no channel must stay. Shapes broadcast."""
        a, b = torch.broadcast_tensors(core(a), core(b))
        met = (a > 0) & (b > 0)
        if not met.all():
            self.freeze(torch.where(met, 0, torch.maximum(a, b)), NO_CHANNEL)
        differ = met & (a != b)
        if differ.any():
            self._edges.append(np.unique(np.stack([a[differ].numpy(), b[differ].numpy()]), axis=1))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """These must stay; the reason that is given first is the one that is told."""
        self._frozen.append((_unique(ids), reason))

    def mark(self, what: str, ids: Tensor) -> None:
        """Remember something of these labels, to be asked for by `marked`."""
        self._marks[what].append(_unique(ids))

    def place(self, ids: Tensor, axes: Collection[int] = ()) -> None:
        """Whatever has these labels can change places only with what is at the same place along these axes, too.

        With no axes: only with what is here as well.
        """
        if not self.for_order:
            return
        labels = core(ids)
        sizes = [n if axis in axes else 1 for axis, n in enumerate(labels.shape)]
        places = torch.arange(math.prod(sizes)).reshape(sizes).expand(labels.shape)
        pairs = np.stack([labels.flatten().numpy(), places.flatten().numpy() + self._place_count])
        self._places.append(pairs[:, pairs[0] > 0])
        self._place_count += math.prod(sizes)

    # *** once everything has been said ***

    def components(self) -> np.ndarray:
        """(count,) int: labels that are one have the same number."""
        edges = np.concatenate(self._edges, axis=1) if self._edges else np.zeros((2, 0), int)
        ones = np.ones(edges.shape[1], bool)
        _, found = connected_components(
            coo_matrix((ones, tuple(edges)), shape=(self.count, self.count)), directed=False
        )
        return found

    def marked(self, what: str) -> np.ndarray:
        """(count,) bool."""
        found = np.zeros(self.count, bool)
        for ids in self._marks[what]:
            found[ids] = True
        return found

    def places(self, components: np.ndarray) -> np.ndarray:
        """(number of components,) int64, the same for those that have the same places."""
        found = np.zeros(int(components.max()) + 1, np.int64)
        if self._places:
            labels, places = np.concatenate(self._places, axis=1)
            pairs = np.unique(components[labels].astype(np.int64) * self._place_count + places)
            keys = np.random.default_rng(1).integers(1, 2**62, self._place_count)  # a set is known by its keys' sum
            np.add.at(found, pairs // self._place_count, keys[pairs % self._place_count])
        return found

    def reasons(self, components: np.ndarray, but_for: Collection[str] = ()) -> dict[int, str]:
        """The first reason why a component must stay, for each that must. but_for: reasons that are none."""
        found: dict[int, str] = {}
        for ids, reason in self._frozen:
            if reason in but_for:
                continue
            for component in np.unique(components[ids]).tolist():
                found.setdefault(component, reason)
        found.pop(int(components[0]), None)
        return found


def _unique(ids: Tensor) -> np.ndarray:
    return np.unique(core(ids).numpy())
