"""The sites of one block, solved and written: what they are fitted to, by which method, and which trial is kept."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compressor.calibrate import Block
from compressor.errors import DataError
from compressor.passes.batchnorm import NUMBER, Correction, running
from compressor.passes.gram import Gram
from compressor.passes.inputs import Inputs, readers
from compressor.passes.methods import method_of
from compressor.passes.offset import mean_output
from compressor.passes.reconstruct import reconstruct
from compressor.passes.refit import conjugate_gradients, gradients_of_both, squared_error
from compressor.passes.targets import dense_target
from compressor.passes.trials import best_of
from compressor.pattern import Pattern
from compressor.sensitivity import Sensitivity
from compressor.sites import WeightSite

if TYPE_CHECKING:
    from compressor.passes.sparsify import Sparsify

Numbers = dict[str, float]  # of a row, by name

COLUMNS_PER_ROW = 64
"""With fewer rows than columns damping takes over, and works with half as many; far below, nothing is known."""

FELT_DAMPING = 0.3
"""Share of the mean sensitivity that is added to that of each output. A saturated unit has hardly any, but only while
its changes are small: what gradients feel must not be bought with outputs that are altogether different."""


@dataclass(frozen=True)
class BlockSolver:
    """How the sites of a block are solved.

    options: of the pass. patterns: what each site's weight is to take. keeps: masks (groups, m, d) that were chosen
    beforehand, for the sites that have one. felt: how the model's loss feels each output, for the sites where that is
    known; it tells weights of one row from those of another.
    """

    options: "Sparsify"
    patterns: Mapping[WeightSite, Pattern]
    keeps: Mapping[WeightSite, Tensor]
    felt: Mapping[WeightSite, Sensitivity] = field(default_factory=dict)

    def solve(self, block: Block) -> dict[WeightSite, Numbers]:
        """Write the weights of a block's sites; returns the numbers of their rows."""
        matches = ("pruned", "dense") if self.options.match == "auto" else (self.options.match,)
        correction = Correction(block) if self.options.batchnorm else None
        trials = [partial(self._solve_sites, block, match == "dense", correction) for match in matches]
        if len(trials) == 1:
            best, solved = 0, trials[0]()
        else:
            best, solved, _ = best_of(trials, lambda solved: _error(block, solved), written(block))
        more: Numbers = {"matches_dense": float(best)} if len(trials) > 1 else {}
        if self.options.reconstruct:
            wanted = block.dense if matches[best] == "dense" else block.pruned
            more |= reconstruct(block, wanted, self.options.reconstruct)
        return {site: numbers | more for site, numbers in solved.numbers.items()}

    def _solve_sites(self, block: Block, is_dense: bool, correction: Correction | None) -> "_Solved":
        solved: dict[WeightSite, Numbers] = {}
        for sites in readers(block, is_centred=self.options.bias):
            statistics = block.statistics[sites[0]]
            _check_rows(sites[0], statistics.n)
            inputs = Inputs.of(
                statistics,
                damping=self.options.damping,
                is_centred=self.options.bias and bool(sites[0].offset),
                is_dense=is_dense,
                is_shared=len(sites) > 1,
            )
            solved |= {site: self._solve_site(site, inputs, is_dense) for site in sites}
        return _corrected(block, solved, correction)

    def _solve_site(self, site: WeightSite, inputs: Inputs, is_dense: bool) -> Numbers:
        """Write the site's pruned weights; returns the numbers of its row."""
        W, H = site.matrix(), inputs.H  # (groups, m, d), (groups, d, d)
        grams = [gram.H for gram in inputs.damped]
        T = torch.stack(list(map(dense_target, W, inputs.G, H, grams))) if is_dense else W
        V = self._solve_groups(site, T, inputs.damped)
        site.write(V)
        if self.options.bias and site.offset:
            site.offset.add((mean_output(W, inputs.z) - mean_output(V, inputs.x)).flatten())
        lost = sum(squared_error(V_g, T_g, H_g) for V_g, T_g, H_g in zip(V, T, H, strict=True))
        energy = sum(squared_error(torch.zeros_like(T_g), T_g, H_g) for T_g, H_g in zip(T, H, strict=True))
        return {
            "sparsity": (V == 0).float().mean().item(),
            "rows": float(inputs.n),
            "damping": inputs.lam,
            "silent_inputs": float(inputs.silent),
            "relative_error": lost / energy if energy else 0.0,
        }

    def _solve_groups(self, site: WeightSite, T: Tensor, damped: list[Gram]) -> Tensor:
        """Pruned and refitted targets T (groups, m, d), for inputs of damped Gram matrices, one for each group."""
        solve = method_of(self.options.method, self.options.iterations)
        pattern, solved = self.patterns[site], []
        scale = (
            self.felt[site].rows.sqrt()[:, :, None] if site in self.felt else torch.ones_like(T[:, :, :1])
        )  # (groups, m, 1)
        T = T * scale
        for g, (T_g, gram) in enumerate(zip(T, damped, strict=True)):
            keep = self.keeps[site][g] if site in self.keeps else None
            V_g, keep = solve(T_g, gram, pattern) if keep is None else (T_g * keep, keep)
            solved.append(conjugate_gradients(V_g, keep, T_g, gram.H, self.options.refit))
        V = torch.stack(solved) / scale
        return self._refit_to_loss(site, V, T / scale, [gram.H for gram in damped]) if self.options.loss_refit else V

    def _refit_to_loss(self, site: WeightSite, V: Tensor, T: Tensor, damped: list[Tensor]) -> Tensor:
        F = self.felt[site].F
        assert F is not None
        groups = zip(V, V != 0, T, damped, map(_trusted, F), strict=True)
        return torch.stack([gradients_of_both(*group, self.options.loss_refit) for group in groups])


@dataclass(frozen=True)
class _Solved:
    """The numbers of a block's sites, and its held-out error where that was asked for."""

    numbers: dict[WeightSite, Numbers]
    error: float | None = None


def _error(block: Block, solved: _Solved) -> float:
    """A check runs half of the model: none is made twice."""
    return block.held_out_error() if solved.error is None else solved.error


def _corrected(block: Block, solved: dict[WeightSite, Numbers], correction: Correction | None) -> _Solved:
    """Move the block's batch normalizations, where that helps; it is added to the numbers of its sites."""
    if not correction or not correction.written:
        return _Solved(solved)
    kept, _, error = best_of([lambda: None, correction.apply], lambda _: block.held_out_error(), correction.written)
    return _Solved({site: numbers | {NUMBER: float(kept)} for site, numbers in solved.items()}, error)


def _trusted(F: Tensor) -> Tensor:
    """F + FELT_DAMPING * mean(diag F) * I; I where nothing is felt."""
    mean = F.diagonal().mean()
    return F + FELT_DAMPING * torch.where(mean > 0, mean, 1.0) * torch.eye(len(F), device=F.device)


def _check_rows(site: WeightSite, n: int) -> None:
    """Raise DataError when there were too few rows for a Gram matrix of the site's columns to say anything."""
    if n * COLUMNS_PER_ROW >= site.d:
        return
    raise DataError(
        f"too few calibration samples for {site.name}",
        found=f"{n} rows for {site.d} columns, where {math.ceil(site.d / COLUMNS_PER_ROW)} are the least",
        hint="more --calibration-samples, a longer --window, or --method magnitude --refit 0, which needs none",
    )


def written(block: Block) -> list[Tensor]:
    """Every tensor that solving the block's sites may write; a running mean may be among both."""
    sites, statistics = block.segment.sites, [x for both in running(block).values() for x in both]
    found = [site.weight for site in sites] + [site.offset.tensor for site in sites if site.offset] + statistics
    return list({id(x): x for x in found}.values())
