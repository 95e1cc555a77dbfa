"""What is left of every numbering is a product: whatever goes, each value stays a box."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from compressor.provenance.facets import core, first_of, settled, varying
from compressor.provenance.labels import Labels


def close(labels: Labels, facets: Iterable[Tensor]) -> np.ndarray:
    """The component of each label, once no removal can leave a ragged value.

    Where labels vary along two axes of a value and nothing has chosen one (a channel shuffle, seen as groups x
    channels), the longer axis is cut and the other stays.
    """
    several = [ids for ids in facets if len(varying(ids)) > 1]
    components = labels.components()
    while ragged := [ids for ids in several if not _is_box(components, ids)]:
        for ids in ragged:
            longest = max(sorted(varying(ids)), key=lambda axis: ids.shape[axis])
            labels.unite(ids, first_of(ids, varying(ids) - {longest}))
        before, components = components, labels.components()
        if components.max() == before.max():
            break  # what is still ragged meets values that are no channels, and is frozen
    return components


def _is_box(components: np.ndarray, ids: Tensor) -> bool:
    """Whether components vary along one axis at most."""
    found = settled(torch.from_numpy(components)[core(ids)].expand(ids.shape))
    return len(varying(found)) <= 1
