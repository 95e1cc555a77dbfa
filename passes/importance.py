"""How much the units of each group matter, from the weights alone or from calibration data.

    magnitude   the sum of squares of everything that a unit owns
    activation  the energy of what its columns bring to the layers that read it, one by one (Wanda's score)
    error       what its removal, at its turn, costs those layers after a refit, as a share of their outputs

The first two are brought to a mean of one in each group, so that groups can be ranked together.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from compressor.calibrate import calibrate
from compressor.channels.groups import ChannelGroup
from compressor.graph import Graph
from compressor.passes.columns import Reader, readers
from compressor.passes.damping import choose_lambda, dampen
from compressor.passes.offset import centre
from compressor.passes.removal import activation, magnitude, removal_errors
from compressor.passes.student import own_tensors
from compressor.pipeline import Context
from compressor.sites import WeightSite
from compressor.statistics import Statistics

MAGNITUDE, ACTIVATION, ERROR = IMPORTANCES = ("magnitude", "activation", "error")

Scores = dict[str, Tensor]  # by group: (units,), higher where a unit should stay
Layer = tuple[Tensor, Tensor, Tensor]  # W (m, d), damped H (d, d), owner (d,)


def by_magnitude(graph: Graph, groups: Iterable[ChannelGroup]) -> Scores:
    """Scores from what each unit owns of parameters: everything but running statistics and states."""
    parameters = {name: x for name, x in own_tensors(graph).items() if isinstance(x, nn.Parameter)}
    found = {}
    for group in groups:
        owned = [one for one in group.slices if one.name in parameters]
        energy = sum(magnitude(parameters[one.name], one.axis, one.owner, group.units) for one in owned)
        assert isinstance(energy, Tensor), f"{group.name} owns no parameter"
        found[group.name] = _to_mean_one(energy).float()
    return found


def by_data(
    graph: Graph, groups: Sequence[ChannelGroup], importance: str, context: Context, *, samples: int, damping: float,
    bias: bool,
) -> Scores:  # fmt: skip
    """Scores from what the groups' readers see on calibration data, in the graph as it is.

    A group that no known contraction reads is scored by its magnitude. damping, bias: as the pass has them.
    """
    reading = readers(graph, groups)
    layers: dict[str, list[Layer]] = {group.name: [] for group in groups}
    waiting = _counts(reading)
    scores = by_magnitude(graph, [group for group in groups if group.name not in waiting])
    blocks = calibrate(graph, list(reading), context.calibration(samples), seed=context.seed, progress=context.progress)
    for block in blocks:
        for site, statistics in block.statistics.items():
            W, H = site.matrix(), _gram(site, statistics, damping, bias)
            for one in reading[site]:
                name = one.group.name
                layers[name] += [(W_g, H_g, one.owner) for W_g, H_g in zip(W, H, strict=True)]
                waiting[name] -= 1
                if not waiting[name]:  # its layers are all there; what they hold can go
                    scores[name] = _score(importance, layers.pop(name), one.group.units)
    return scores


def _counts(reading: Mapping[WeightSite, Sequence[Reader]]) -> dict[str, int]:
    """How many sites read each group."""
    found: dict[str, int] = {}
    for each in reading.values():
        for one in each:
            found[one.group.name] = found.get(one.group.name, 0) + 1
    return found


def _gram(site: WeightSite, statistics: Statistics, damping: float, bias: bool) -> list[Tensor]:
    """Damped (d, d), one for each group of a convolution; about the mean where an offset makes up for that."""
    H = statistics.gram()
    if bias and site.offset is not None:
        H = centre(H, statistics.mean())
    return [dampen(H_g, damping or choose_lambda(site.d, statistics.n)) for H_g in H]


def _score(importance: str, layers: Sequence[Layer], units: int) -> Tensor:
    if importance == ERROR:
        return removal_errors(layers, units)
    energy = sum(activation(W, H, owner, units) for W, H, owner in layers)
    assert isinstance(energy, Tensor)
    return _to_mean_one(energy)


def _to_mean_one(energy: Tensor) -> Tensor:
    mean = energy.mean()
    return energy / mean if mean else energy
