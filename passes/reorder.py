"""Channels put into the order in which an N:M pattern costs least, before any weight is pruned.

Which groups of channels there are is read from the graph (compressor/channels/groups.py): hidden channels, streams that
blocks add to, and the channels inside of each head, which cannot leave it. The units of one may change their order for
free: what makes them, what follows, and what reads them change with them, and the graph computes the same. Of those
that read them, the sites that are to take the pattern say which order is good, each by its own score.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.channels.groups import ChannelGroup, find_orders
from compressor.channels.permute import permute, why_fixed
from compressor.errors import InternalError
from compressor.graph import Graph
from compressor.observe import observe
from compressor.passes.damping import choose_lambda, dampen
from compressor.passes.gram import Gram
from compressor.passes.neighbours import best_order, lost_score
from compressor.passes.offset import centre
from compressor.pattern import NM, Pattern
from compressor.pipeline import Context
from compressor.proof.parity import TOLERANCE, difference
from compressor.sites import WeightSite
from compressor.statistics import Statistics

ORDER_SAMPLES = 32
"""Calibration samples that tell; an order is less particular about them than weights are."""

MOST_ROWS = 8192
"""Rows of scores that a group is ordered by; of more, a part of each reader's. Any few hundred tell about as much."""

NOTHING_TO_GAIN = "permute: channels keep their order, since a ratio may make zeros anywhere"

Score = dict[WeightSite, Tensor]  # (rows, K): what each weight is worth, along the contracted axis


@dataclass(frozen=True)
class Reordered:
    """saved: of the scores that the pattern removes from a site, the share that it keeps in the new order.

    orders: by group. kept: why the other groups keep theirs, by name.
    """

    saved: Mapping[WeightSite, float]
    orders: Mapping[str, Tensor]
    heads: int
    kept: Mapping[str, str]

    def note(self, pattern: Pattern) -> str:
        """For a report."""
        shares = sorted(self.saved.values())
        inside = f", {self.heads} of them inside of a head" if self.heads else ""
        said = f"permute: {len(self.orders)} groups of channels have another order{inside}"
        said += "; a dense model computes the same"
        if shares:
            said += (
                f"; of the scores that {pattern} removes, {shares[0]:.0%} to {shares[-1]:.0%} less "
                f"in the {len(shares)} weights that read them"
            )
        reasons = Counter(self.kept.values())
        return said + "".join(f"; {n} stay{'s' if n == 1 else ''}: {why}" for why, n in reasons.items())


def reorder(
    graph: Graph, sites: Sequence[WeightSite], pattern: NM, method: str, context: Context, *, bias: bool, damping: float
) -> Reordered:
    """Give channel groups the order in which the pattern removes least from these sites, in place.

    method: whose scores count (`sparsify`). The dense model that the context holds changes with the graph.
    """
    reading, kept = _readers(graph, sites, pattern)
    lost: dict[WeightSite, Lost] = defaultdict(Lost)
    orders: dict[str, Tensor] = {}
    heads = 0
    for group, scores in _complete(reading, _scores(graph, reading, method, context, bias, damping)):
        order = _best(scores, pattern, context.seed)
        for site, S in scores.items():
            lost[site].add(S, order, pattern)
        if torch.equal(order, torch.arange(group.units)):
            kept[group.name] = "no other order is better"
            continue
        orders[group.name] = order
        heads += group.kind == "heads"
    _apply(graph, orders, context)
    saved = {site: one.saved for site, one in lost.items() if one.after != one.before}
    return Reordered(saved, orders, heads, kept)


def _apply(graph: Graph, orders: Mapping[str, Tensor], context: Context) -> None:
    """Raises InternalError when the graph does not compute what it did."""
    names = [port.name for port in graph.outputs if not port.is_state]
    # What a cache holds has the order of the channels that it came from.
    states = {port.name for port in graph.inputs if port.is_state}
    feeds = {name: torch.zeros_like(x) if name in states else x for name, x in graph.example.items()}
    before = graph.run(feeds)
    permute(graph, orders)
    gap = difference(lambda _: before, lambda _: graph.run(feeds), {}, names)
    if not gap <= TOLERANCE["float32"]:
        raise InternalError(f"with its channels in another order the graph does not compute what it did: {gap:.1e} off")
    if context.dense is not None:
        permute(context.dense, orders)


# *** which groups ***

# The sites that read a group, and the positions of its units along their axis, once for each time they are read
# (times, units): the query heads of a group read one key-value head.
Reading = dict[ChannelGroup, dict[WeightSite, Tensor]]


def _readers(graph: Graph, sites: Sequence[WeightSite], pattern: NM) -> tuple[Reading, dict[str, str]]:
    """The groups that may change their order for the sake of some sites; and why others may not, by name."""
    named = {site.name: site for site in sites}
    found: Reading = {}
    kept: dict[str, str] = {}
    for group in find_orders(graph):
        reading = [(named[one.name], one) for one in group.consumers if one.name in named]
        reading = [(site, one) for site, one in reading if one.axis == site.axis]
        if not reading:
            continue  # none of its readers is to be pruned
        why = why_fixed(graph, group) or next((why for _, one in reading if (why := _why_not(one.owner, pattern))), "")
        if why:
            kept[group.name] = why
        else:
            found[group] = {site: _positions(one.owner) for site, one in reading}
    return found, kept


def _positions(owner: Tensor) -> Tensor:
    """(times, units): the positions of units along an axis; owner (K,): the unit of each position, or -1."""
    return (owner >= 0).nonzero().reshape(-1, int(owner.max()) + 1)


def _why_not(owner: Tensor, pattern: NM) -> str:
    """Why the order of units is not that of groups of neighbours; owner (K,): the unit of each position, or -1."""
    units = int(owner.max()) + 1
    at = _positions(owner)
    if not torch.equal(owner[at], torch.arange(units).expand_as(at)):
        return "each owns several neighbours" if len(at) > 1 else "what reads them has them in another order"
    if not torch.equal(at - at[:, :1], torch.arange(units).expand_as(at)):
        return "what reads them has others between them"
    if (at[:, 0] % pattern.m).any() or units % pattern.m:
        return f"groups of {pattern.m} neighbours reach beyond them"
    return ""


# *** scores ***


def _scores(
    graph: Graph, reading: Reading, method: str, context: Context, bias: bool, damping: float
) -> Iterator[Score]:
    sites = [site for site in graph.sites if any(site in each for each in reading.values())]
    if method == "magnitude":
        yield {site: _by_column(site, site.matrix().square()) for site in sites}
        return
    batches = context.calibration(ORDER_SAMPLES)
    for statistics in observe(graph, sites, batches, seed=context.seed, progress=context.progress):
        yield {site: _score(site, one, method, bias, damping) for site, one in statistics.items()}


def _score(site: WeightSite, statistics: Statistics, method: str, bias: bool, damping: float) -> Tensor:
    """What the method ranks weights by: (rows, K)."""
    H = statistics.gram()  # (groups, d, d)
    H = centre(H, statistics.mean()) if bias and site.offset else H
    lam = damping or choose_lambda(site.d, statistics.n)
    worth = torch.stack([_worth(dampen(H_g, lam), method) for H_g in H])  # (groups, d)
    return _by_column(site, site.matrix().square() * worth[:, None])


def _worth(H: Tensor, method: str) -> Tensor:
    """(d,): the energy of each input; or, for methods that make up for what they remove, what is left of it then.

    The latter is 1 / [H^-1]_jj (Frantar & Alistarh 2023, eq. 3).
    """
    if method == "wanda":
        return H.diagonal()
    R = Gram(H).upper()
    inverse = torch.linalg.solve_triangular(R, torch.eye(len(R), device=R.device), upper=True)  # H^-1 = its gram
    return 1 / inverse.square().sum(0)


def _by_column(site: WeightSite, S: Tensor) -> Tensor:
    """Scores (groups, m, d) as (rows, K): a kernel has a row for each of its positions."""
    return S.reshape(-1, site.K)


# *** the order of one group ***


def _complete(reading: Reading, scored: Iterator[Score]) -> Iterator[tuple[ChannelGroup, Score]]:
    """Each group with its own columns (rows, units) of its readers' scores, as soon as the last of them is known."""
    waiting = {group: dict[WeightSite, Tensor]() for group in reading}
    for scores in scored:
        for group in list(waiting):
            for site, at in reading[group].items():
                if site in scores:
                    rows = _some(scores[site], MOST_ROWS // (len(at) * len(reading[group])))
                    waiting[group][site] = rows[:, at].reshape(-1, group.units)
            if len(waiting[group]) == len(reading[group]):
                yield group, waiting.pop(group)


def _some(S: Tensor, most: int) -> Tensor:
    """At most so many rows, from all over."""
    return S[:: -(-len(S) // max(most, 1))]


def _best(scores: Score, pattern: NM, seed: int) -> Tensor:
    """Of several readers each counts by what it loses now."""
    now = torch.arange(next(iter(scores.values())).shape[1])
    lost = [lost_score(S, now, pattern.n, pattern.m) for S in scores.values()]
    S = torch.cat([S / (one or 1.0) for S, one in zip(scores.values(), lost, strict=True)])
    return best_order(S, pattern.n, pattern.m, seed)


@dataclass
class Lost:
    """The scores that the pattern removes from a site, before and after, over the groups that it reads."""

    before: float = 0.0
    after: float = 0.0

    def add(self, S: Tensor, order: Tensor, pattern: NM) -> None:
        self.before += lost_score(S, torch.arange(len(order)), pattern.n, pattern.m)
        self.after += lost_score(S, order, pattern.n, pattern.m)

    @property
    def saved(self) -> float:
        return 1 - self.after / self.before if self.before else 0.0
