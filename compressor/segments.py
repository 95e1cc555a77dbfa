"""The graph cut into segments: one for each repeated block (`transformer.h.3`), in the order in which it runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import Tensor, fx

from compressor.graph import Graph
from compressor.sites import WeightSite


@dataclass(frozen=True)
class Segment:
    """A run of nodes, the sites to rewrite once it has been seen, and the values that later segments read.

    outputs: those of them that it computes in floating point; or, where none lives on, what its sites compute.
    rest: its nodes and all that follow.
    """

    nodes: tuple[fx.Node, ...]
    sites: tuple[WeightSite, ...]
    live: frozenset[fx.Node]
    outputs: frozenset[fx.Node]
    rest: tuple[fx.Node, ...]


def block_of(name: str) -> str:
    """The repeated block a parameter belongs to: its name up to the first number.

    `transformer.h.3.mlp.c_fc.weight` -> `transformer.h.3`; a name without a number is a block of its own.
    """
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: first + 1])


def segments(graph: Graph, sites: Sequence[WeightSite], *, whole: bool = False) -> list[Segment]:
    """The graph cut after each block's last site, where the fewest values live on; what no site depends on is left out.

    Of several such places the last: what normalizes or maps a block's outputs is solved and carried over with it.

    A weight with several consumers is never cut apart: its statistics are the sum over all of them.
    whole: the last segment, too, ends at such a cut, before the next site; else it ends with its last activation.
    """
    if not sites:
        return []
    index = {node: position for position, node in enumerate(graph.module.graph.nodes)}
    uses = sorted(((index[use.node], site) for site in sites for use in site.uses), key=lambda use: use[0])
    last_read = _read_to_the_end(sites, index) if whole else _last_read(sites, index)
    crossing = _crossing(index, last_read)
    end = _narrowest(_to_next_site(graph, uses[-1][0], index), crossing) if whole else uses[-1][0]
    return [_segment(start, end, uses, index, last_read) for start, end in pairwise([-1, *_cuts(uses, crossing), end])]


def _segment(
    start: int, end: int, uses: list[tuple[int, WeightSite]], index: dict[fx.Node, int], last_read: dict[fx.Node, int]
) -> Segment:
    nodes = tuple(node for node in last_read if start < index[node] <= end)
    sites = tuple(dict.fromkeys(site for at, site in uses if start < at <= end))
    live = frozenset(node for node, last in last_read.items() if index[node] <= end < last)
    outputs = frozenset(filter(_is_floating, live.intersection(nodes)))
    rest = tuple(node for node in last_read if start < index[node])
    return Segment(nodes, sites, live, outputs or frozenset(use.node for site in sites for use in site.uses), rest)


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _last_read(sites: Sequence[WeightSite], index: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """Every value that a site depends on, in graph order, and the position of its last reader; weights are left out."""
    needed = ancestors(use.activation for site in sites for use in site.uses)
    readers = needed | {use.node for site in sites for use in site.uses}
    return {
        node: max(index[user] for user in node.users if user in readers)
        for node in index
        if node in needed and node.op != "get_attr"
    }


def _read_to_the_end(sites: Sequence[WeightSite], index: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """As `_last_read`, and every value between the sites and the output that is scored, which reads it last."""
    output = list(index)[-1]
    needed = ancestors([scored(output), *(use.node for site in sites for use in site.uses)])
    readers = needed | {output}
    return {
        node: max((index[user] for user in node.users if user in readers), default=index[output])
        for node in index
        if node in needed and node.op != "get_attr"
    }


def scored(output: fx.Node) -> fx.Node:
    return output.args[0][0]  # type: ignore[index,return-value]


def _to_next_site(graph: Graph, last: int, index: dict[fx.Node, int]) -> range:
    """The positions from the last use on, to where the graph's next site, or its output, begins."""
    following = [index[use.node] for site in graph.sites for use in site.uses if index[use.node] > last]
    return range(last, min(following, default=len(index) - 1))


def _crossing(index: dict[fx.Node, int], last_read: dict[fx.Node, int]) -> list[int]:
    """How many values live on after each position."""
    steps = [0] * len(index)
    for node, last in last_read.items():
        steps[index[node]] += 1
        steps[last] -= 1
    return list(accumulate(steps))


def _cuts(uses: list[tuple[int, WeightSite]], crossing: list[int]) -> list[int]:
    """Between the last site of a block and the first of the next, the last position that the fewest values cross."""
    spans: dict[WeightSite, list[int]] = {}
    for at, site in uses:
        spans.setdefault(site, []).append(at)
    return [
        _narrowest(range(here, there), crossing)
        for (here, site), (there, following) in pairwise(uses)
        if block_of(site.name) != block_of(following.name) and not any(at[0] <= here < at[-1] for at in spans.values())
    ]


def _narrowest(positions: range, crossing: Sequence[int]) -> int:
    return min(reversed(positions), key=crossing.__getitem__)


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes, and every node that they depend on."""
    found, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
