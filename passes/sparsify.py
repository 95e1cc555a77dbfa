"""The pass `sparsify`: weights to zero along the contracted axis, the kept ones refitted to the layer's outputs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compressor.errors import InternalError, RecipeError
from compressor.graph import Graph
from compressor.passes import batchnorm, inputs
from compressor.passes.allocate import SHARES
from compressor.passes.blockwise import effort, solve_blocks
from compressor.passes.distill import ROWS, distill
from compressor.passes.gates import ask, decide, divide, undivided
from compressor.passes.masks import global_ratio_keep, nm_fraction
from compressor.passes.methods import METHODS, by_magnitude
from compressor.passes.reorder import NOTHING_TO_GAIN, ORDER_SAMPLES, Reordered, reorder
from compressor.passes.shares import Weighed, check_budget, divided, feel, weigh, within_budget
from compressor.passes.solve import BlockSolver, Numbers
from compressor.pattern import NM, Pattern, Ratio, parse_pattern
from compressor.pipeline import Context, Effort, Outcome, Row, SiteLoss, choose, in_order
from compressor.registry import unknown
from compressor.sensitivity import SAMPLES
from compressor.sites import WeightSite

SCOPES = ("site", "global", "loss", "auto")
MATCHES = ("pruned", "dense", "auto")
THROUGH = ("blocks", "model", "auto")


@dataclass(frozen=True)
class Sparsify:
    """Zero the least important weights of each named site, one-shot, block after block.

    pattern: "2:4" keeps at most 2 of every 4 weights along the contracted axis; "0.5" removes half of them.
    method: how weights are scored. "magnitude" |W|; "wanda" |W| * ||X|| (Sun et al. 2023); "sparsegpt" by the
        optimal-brain-surgeon error, with compensation (Frantar & Alistarh 2023); "admm" by a solver that fits the
        outputs and the pattern together (Meng et al. 2024): the best masks, and the slowest on wide layers. "auto":
        admm for each site where its price is that of a plain SparseGPT, by shape; else sparsegpt.
    iterations: of ADMM, three to a factorization: 9 take about as long as a plain SparseGPT, 48 find the best.
    scope: for a ratio, whether each site loses that share ("site") or all sites together do: "global" ranks scores
        across sites, and so serves magnitude only; "loss" measures what each site's zeros do to the loss of the dense
        model, by gradients on calibration data, and takes more where it costs less. "auto": by loss where there is a
        ratio that this can serve and nothing is a convolution, else each site alone.
    dense: of an N:M pattern, the share of the named weights that may stay dense: those that it costs most, measured as
        for scope=loss.
    permute: whether channels are first put into the order in which an N:M pattern removes least (Pool & Yu 2021),
        wherever the graph then computes the same without an operator more; inside of heads, each by itself.
    refit: conjugate-gradient steps on the kept weights after the mask is chosen. 0 leaves methods as published: biases
        and batch normalizations stay too, and match=auto tries nothing.
    loss_refit: conjugate-gradient steps after these that lower not the error of a site's outputs but what it does to
        the loss of the model, as the Kronecker-factored Fisher information tells (Martens & Grosse 2015).
    bias: whether the bias of a site is refitted with its weights, which are then chosen by what their inputs vary and
        not by their means. Where a batch normalization reads the site, its running mean stands for the bias; a site
        that has neither keeps its means.
    match: what outputs are fitted to. "pruned": what the dense weights make of the pruned inputs. "dense": what the
        dense model has there, so that a site makes up for the ones before it. "auto": where sites are convolutions,
        this for each block with which the scored output on held-out samples, a fifth of all, then comes nearer to the
        dense model's; "pruned" where there is but one batch, and for other models, since dense targets harm language
        models (benchmarks/accuracy.md).
    batchnorm: whether statistics of each block's batch normalizations are moved by what pruning has changed in them,
        kept where the scored output on held-out samples then comes nearer to the dense model's.
    damping: share of each channel's energy added to the Gram matrix; 0 chooses clamp(d / rows, 0.01, 1).
    reconstruct: steps of Adam on kept weights, biases and norms; the state is kept with which the scored output on
        held-out samples is nearest to the dense model's.
    through: what these steps go through. "blocks", one after the other: each learns the outputs that `match` says.
        "model": all sites at once learn the scored output. "auto": the model where that says something of each token,
        else blocks: one prediction for a whole sample tells little.
    samples: how many calibration samples are used.
    targets, ignore: globs over site names.
    """

    name: ClassVar[str] = "sparsify"
    needs_dense: ClassVar[bool] = False
    without_data: ClassVar[str] = "--method magnitude --refit 0"

    pattern: str
    method: str = "auto"
    iterations: int = 9
    scope: str = "site"
    dense: float = 0.0
    permute: bool = False
    refit: int = 4
    loss_refit: int = 0
    bias: bool = True
    match: str = "auto"
    batchnorm: bool = True
    damping: float = 0.0
    reconstruct: int = 0
    through: str = "auto"
    samples: int = 128
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", str(parse_pattern(self.pattern)))
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)
        if self.match not in MATCHES:
            raise unknown("match", self.match, MATCHES)
        if self.through not in THROUGH:
            raise unknown("through", self.through, THROUGH)
        self._check_scope()
        self._check_dense()
        if (
            min(self.refit, self.loss_refit, self.damping, self.reconstruct) < 0
            or min(self.samples, self.iterations) < 1
        ):
            raise RecipeError(
                "refit, loss_refit, damping and reconstruct cannot be negative; samples and iterations are at least 1"
            )

    @property
    def divides(self) -> str:
        """What a share is divided by: the scope, with auto decided as far as the options tell."""
        if self.scope != "auto":
            return self.scope
        return "loss" if isinstance(self._pattern, Ratio) and self._pattern.sparsity <= SHARES[-1] else "site"

    def _check_scope(self) -> None:
        if self.divides == "site":
            return
        if not isinstance(self._pattern, Ratio):
            raise RecipeError(
                f"scope={self.scope} needs a ratio, not {self.pattern}",
                found="an N:M pattern removes the same share from every site",
                hint="--sparsity 0.5, or scope=site",
            )
        if self.scope == "global" and self.method != "magnitude":
            raise RecipeError(
                f"scope=global cannot rank {self.method} scores",
                found="they depend on the sites before, which are pruned first",
                hint="--method magnitude, or scope=loss",
            )
        if self.scope == "loss" and self._pattern.sparsity > SHARES[-1]:
            raise RecipeError(
                f"scope=loss cannot remove {self._pattern.sparsity:.1%} of all weights",
                found=f"it leaves at least {1 - SHARES[-1]:.0%} of each",
                hint=f"--sparsity {SHARES[-1]}, or scope=site",
            )

    def _check_dense(self) -> None:
        if not 0 <= self.dense < 1:
            raise RecipeError(f"dense cannot be {self.dense}", hint="--dense 0.1 keeps a tenth of the weights dense")
        if self.dense and not isinstance(self._pattern, NM):
            raise RecipeError(
                f"dense needs an N:M pattern, not {self.pattern}",
                found="a ratio is divided without it",
                hint="--scope loss, or --sparsity 2:4",
            )

    @property
    def _pattern(self) -> Pattern:
        return parse_pattern(self.pattern)

    @property
    def _is_ordered(self) -> bool:
        """Whether channels change their order first."""
        return self.permute and isinstance(self._pattern, NM)

    @property
    def _is_weighed(self) -> bool:
        """Whether sites are told apart by what their zeros cost."""
        return self.divides == "loss" or self.dense > 0

    @property
    def _is_felt(self) -> bool:
        """Whether it is asked how the loss feels outputs."""
        return self._is_weighed or self.loss_refit > 0

    @property
    def needs_data(self) -> bool:
        """Magnitude without refit reads the weights alone."""
        fits = self.refit > 0 or self.reconstruct > 0 or self.match == "dense"
        return self.method != "magnitude" or fits or self._is_felt

    @property
    def gradient_samples(self) -> int:
        return SAMPLES if self._is_felt else 0

    def effort(self, graph: Graph) -> Effort:
        is_observed = self._is_ordered and self.method != "magnitude"
        decided, observed = decide(self, graph, graph.sites), ORDER_SAMPLES if is_observed else 0
        by_blocks, steps = divide(decided)
        made = effort(by_blocks, graph, observed)
        return dataclasses.replace(made, distilled=steps, rows=ROWS) if steps else made

    def plan(self, graph: Graph) -> list[Row]:
        named, rows = choose(graph.sites, self.targets, self.ignore, graph.orphans)
        for site in named:
            reason = refusal(site, self._pattern)
            rows.append(Row(site.name, "refused" if reason else "changed", reason, asked=self.pattern))
        if self.dense:
            check_budget([site for site in named if not refusal(site, self._pattern)], self.dense)
        return in_order(
            rows, graph, f"no site can take {self.pattern}", "compress plan MODEL --sparsity 0.5, or other --targets"
        )

    def run(self, graph: Graph, context: Context) -> Outcome:
        rows = {row.site: row for row in self.plan(graph)}
        sites = [site for site in graph.sites if rows[site.name].status == "changed"]
        keeps = self._global_keeps(sites) if self.scope == "global" else {}
        decided, steps = divide(decide(self, graph, sites))
        decided, said = ask(decided, lambda: context.calibration(self.samples))
        dense = graph.copy() if steps else None
        reordered = decided._reordered(graph, sites, context)
        if decided._is_felt:
            solved = decided._by_loss(graph, sites, keeps, context)
        elif decided.needs_data:
            solver = BlockSolver(decided, dict.fromkeys(sites, self._pattern), keeps)
            solved = solve_blocks(graph, sites, solver, context)
        else:
            solved = {site: self._mask(site, keeps.get(site)) for site in sites}
        for site, numbers in solved.items():
            saved = {"saved_by_order": reordered.saved[site]} if reordered and site in reordered.saved else {}
            rows[site.name] = dataclasses.replace(rows[site.name], numbers=numbers | saved)
        for site in sites:
            if site not in solved:
                rows[site.name] = Row(site.name, "left", f"among the {self.dense:.0%} that {self.pattern} costs most")
        said = (*said, *undivided(self, decided), *decided._said(reordered, solved))
        if dense:
            learned = distill(graph, dense, list(solved), context.calibration(self.samples), steps, context)
            said = (*said, learned)
        return Outcome(tuple(rows.values()), notes=said)

    def weigh(self, graph: Graph, context: Context) -> list[SiteLoss]:
        changed = {row.site for row in self.plan(graph) if row.status == "changed"}
        graph = graph.copy() if self._is_ordered else graph  # the model that is given stays as it is
        sites = [site for site in graph.sites if site.name in changed]
        decided = decide(self, graph, sites)
        decided._reordered(graph, sites, context)
        felt = feel(graph, sites, self.samples, context, by_pairs=False)
        weighed = weigh(felt, self._pattern)
        given = self._divided(weighed) if decided._is_weighed else dict.fromkeys(sites, self._pattern)
        return [_site_loss(site, one, given.get(site)) for site, one in weighed.items()]

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        changed = {row.site: row for row in outcome.of("changed")}
        sites = [site for site in graph.sites if site.name in changed]
        if len(sites) != len(changed):
            raise InternalError(f"sparsify says it changed {sorted(set(changed) - {site.name for site in sites})}")
        for site in sites:
            if isinstance(self._pattern, NM):
                _ensure_groups(site, self._pattern)
        if isinstance(self._pattern, Ratio):
            together = None if decide(self, graph, sites).divides == "site" else sites
            _ensure_zeros(together, sites, self._pattern.sparsity)

    def _reordered(self, graph: Graph, sites: Sequence[WeightSite], context: Context) -> Reordered | None:
        if not self._is_ordered:
            return None
        assert isinstance(self._pattern, NM)
        return reorder(graph, sites, self._pattern, self.method, context, bias=self.bias, damping=self.damping)

    def _said(self, reordered: Reordered | None, solved: Mapping[WeightSite, Numbers]) -> Iterator[str]:
        if self.permute:
            yield reordered.note(self._pattern) if reordered else NOTHING_TO_GAIN
        if self.batchnorm:
            yield batchnorm.said(solved.values())
        yield from inputs.said(solved)

    def _by_loss(
        self, graph: Graph, sites: Sequence[WeightSite], keeps: dict[WeightSite, Tensor], context: Context
    ) -> dict[WeightSite, Numbers]:
        """The numbers of the sites that are pruned; the others stay dense."""
        felt = feel(graph, sites, self.samples, context, by_pairs=self.loss_refit > 0)
        if not self._is_weighed:
            return solve_blocks(
                graph, sites, BlockSolver(self, dict.fromkeys(sites, self._pattern), keeps, felt), context
            )
        weighed = weigh(felt, self._pattern)
        patterns = self._divided(weighed)
        solved = solve_blocks(graph, list(patterns), BlockSolver(self, patterns, keeps, felt), context)
        return {
            site: numbers | {"foretold_loss": _loss(weighed[site], patterns[site])} for site, numbers in solved.items()
        }

    def _divided(self, weighed: Mapping[WeightSite, Weighed]) -> dict[WeightSite, Pattern]:
        if isinstance(self._pattern, NM):
            return within_budget(weighed, self._pattern, self.dense)
        return divided(weighed, self._pattern.sparsity)

    def _mask(self, site: WeightSite, keep: Tensor | None) -> Numbers:
        """Write the site's weights, masked by magnitude; returns the numbers of its row."""
        W = site.matrix()  # (groups, m, d)
        keep = torch.stack([by_magnitude(W_g, None, self._pattern)[1] for W_g in W]) if keep is None else keep
        site.write(W * keep)
        return {"sparsity": 1 - keep.float().mean().item()}

    def _global_keeps(self, sites: Sequence[WeightSite]) -> dict[WeightSite, Tensor]:
        assert isinstance(self._pattern, Ratio)
        scores = [site.matrix().abs() for site in sites]
        return dict(zip(sites, global_ratio_keep(scores, self._pattern.sparsity), strict=True))


def refusal(site: WeightSite, pattern: Pattern) -> str:
    """Why a site cannot take a pattern, or ""."""
    if site.conflict:
        return site.conflict
    if isinstance(pattern, NM) and site.K % pattern.m:
        return f"its contracted axis has length {site.K}, not a multiple of {pattern.m}"
    return ""


def _loss(weighed: Weighed, pattern: Pattern) -> float:
    return weighed.asked if isinstance(pattern, NM) else weighed.curve.at(pattern.sparsity)


def _site_loss(site: WeightSite, weighed: Weighed, pattern: Pattern | None) -> SiteLoss:
    given, loss = (str(pattern), _loss(weighed, pattern)) if pattern else ("dense", 0.0)
    return SiteLoss(site.name, weighed.curve.size, SHARES, weighed.curve.losses, given, loss)


def _ensure_groups(site: WeightSite, pattern: NM) -> None:
    W = site.weight.detach().movedim(site.axis, -1)
    good, total = nm_fraction(W, pattern.n, pattern.m)
    if good != total:
        raise InternalError(f"{site.name}: {total - good} of {total} groups along axis {site.axis} break {pattern}")


def _ensure_zeros(together: Sequence[WeightSite] | None, sites: Sequence[WeightSite], sparsity: float) -> None:
    for group in [together] if together else [[site] for site in sites]:
        zeros = sum(int((site.weight == 0).sum()) for site in group)
        size = sum(site.weight.numel() for site in group)
        # Every row may round on its own: half a weight each.
        slack = sum(site.m for site in group) / 2 + 1
        if zeros < sparsity * size - slack:
            raise InternalError(f"{group[0].name}: {zeros} of {size} weights are zero, {sparsity:.0%} were promised")
