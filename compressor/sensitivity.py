"""What a change of each site's outputs costs the model, by gradients of the dense model's loss.

The loss is what the scored output moves by: for logits the KL divergence from the dense model's classes, whose second
derivative is the Fisher information E[g g^T], with gradients g of the likelihood of classes drawn from the model itself
(Martens & Grosse 2015, arXiv 1503.05671); no labels are read. For other outputs it is half their squared error, as a
share of their energy, probed by normal noise. Of the Fisher information the diagonal is kept, channel by channel: a
site whose outputs change by D X then costs about 1/2 sum_i rows_i (D H D^T)_ii.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.calibrate import empty_statistics, gather, placed
from compressor.graph import Feeds, Graph
from compressor.machine import Machine, Values
from compressor.progress import Progress
from compressor.segments import ancestors, scored
from compressor.sites import WeightSite
from compressor.statistics import Statistics

SMOOTHING = 0.01
"""Share of the classes' probability that is spread evenly. A classifier that is certain of every image that it was
trained on has no gradients there; what moves its logits still counts."""

SAMPLES = 64
"""Calibration samples that tell; gradients take several times a forward pass."""


@dataclass
class Sensitivity:
    """Of one site, over the outputs that belong to one term of the loss (a token, an image).

    rows: squared gradients of the loss by each output channel (groups, m). F: their products by pairs (groups, m, m),
    whose diagonal is rows; None unless asked for. statistics: of what the site reads in the dense model.
    """

    rows: Tensor
    F: Tensor | None
    statistics: Statistics

    def add(self, g: Tensor) -> None:
        """Add gradients (groups, n, m)."""
        self.rows += g.square().sum(1)
        if self.F is not None:
            self.F.baddbmm_(g.mT, g)


def sensitivities(
    graph: Graph,
    sites: Sequence[WeightSite],
    batches: Sequence[Feeds],
    *,
    seed: int,
    is_logits: bool,
    progress: Progress,
    by_pairs: bool = False,
) -> dict[WeightSite, Sensitivity]:
    """Run the dense model forwards and back on the first SAMPLES samples.

    is_logits: whether the last axis of the scored output holds the logits of classes. seed: draws classes or noise, and
    the positions sampled from convolutions' inputs. by_pairs: whether outputs are told by pairs.
    """
    batches = _first(batches, SAMPLES)
    machine, generator = Machine(graph.module), torch.Generator().manual_seed(seed)
    statistics = empty_statistics(sites, cross=False)
    found = {site: _nothing(site, statistics[site], by_pairs) for site in sites}
    n_terms = 0
    with progress.task("gradients", total=len(batches)) as step:
        for batch in batches:
            values = placed(graph, batch)
            seen, output = _run(graph, machine, sites, values)
            n_terms += output[..., 0].numel()
            _add_gradients(found, seen, _probed(output, is_logits, generator))
            with torch.no_grad():
                gather(statistics, seen, seen, len(batches), generator)
            step()
    for one in found.values():
        one.rows /= n_terms
        if one.F is not None:
            one.F /= n_terms
    return found


def _nothing(site: WeightSite, statistics: Statistics, by_pairs: bool) -> Sensitivity:
    rows = torch.zeros(site.groups, site.m // site.groups, device=site.weight.device)
    return Sensitivity(rows, torch.diag_embed(rows) if by_pairs else None, statistics)


def _first(batches: Sequence[Feeds], n: int) -> Sequence[Feeds]:
    """As few batches as hold n samples."""
    count = 0
    for at, batch in enumerate(batches):
        count += len(next(iter(batch.values())))
        if count >= n:
            return batches[: at + 1]
    return batches


def _run(graph: Graph, machine: Machine, sites: Iterable[WeightSite], given: Values) -> tuple[Values, Tensor]:
    """What the sites read and make, and the scored output, all with gradients."""
    output = scored(next(iter(reversed(graph.module.graph.nodes))))
    needed = ancestors([output, *(use.node for site in sites for use in site.uses)])
    nodes = tuple(n for n in graph.module.graph.nodes if n in needed and n.op not in ("placeholder", "get_attr"))
    keep = {node for site in sites for use in site.uses for node in (use.node, use.activation)}
    weights = {id(site.weight) for site in sites}
    # A model whose parameters ask for no gradient has some all the same.
    leaves = {node: x.detach().requires_grad_() for node, x in machine.weights.items() if id(x) in weights}
    made = machine.run_nodes(nodes, given | leaves, keep | {output}, gradients=True)
    return given | made, made[output]


def _probed(output: Tensor, is_logits: bool, generator: torch.Generator) -> Tensor:
    """What to go back from: the likelihood of classes drawn from the logits, or a random direction of other outputs."""
    y = output.float()
    if is_logits:
        logits = y.flatten(0, -2)  # (terms, classes)
        p = (1 - SMOOTHING) * logits.detach().softmax(-1) + SMOOTHING / logits.shape[-1]
        drawn = torch.multinomial(p.cpu(), 1, generator=generator).to(y.device)
        return (p * logits).sum() - logits.gather(1, drawn).sum()
    noise = torch.randn(y.shape, generator=generator).to(y.device)
    energy = y.detach().square().sum(-1).mean()
    return (y * noise).sum() / energy.sqrt().clamp_min(torch.finfo(y.dtype).tiny)


def _add_gradients(found: dict[WeightSite, Sensitivity], seen: Values, loss: Tensor) -> None:
    uses = [(site, use) for site in found for use in site.uses]
    outputs: list[Tensor] = [seen[use.node] for _, use in uses]
    for (site, use), g in zip(uses, torch.autograd.grad(loss, outputs, allow_unused=True), strict=True):
        if g is not None:
            found[site].add(site.outputs(use, g).float())
