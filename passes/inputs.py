"""What weights that read the same activation are fitted for: its statistics, centred and damped once for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from compressor.calibrate import Block
from compressor.passes.damping import choose_lambda, dampen, is_dead
from compressor.passes.gram import Gram
from compressor.passes.offset import centre, centre_cross
from compressor.sites import WeightSite
from compressor.statistics import Statistics


@dataclass(frozen=True)
class Inputs:
    """Of n rows x, and rows z that are to be matched in their place (x itself, or what the dense model reads).

    lam: the damping. silent: how many inputs never change on these rows, over all groups. H: mean Gram matrices of x
    (groups, d, d). G: of z and x alike, Z^T X. damped: H damped, one for each group. All are centred where biases move.
    x, z: mean rows (groups, d).
    """

    n: int
    lam: float
    silent: int
    H: Tensor
    G: Tensor
    damped: list[Gram]
    x: Tensor
    z: Tensor

    @staticmethod
    def of(statistics: Statistics, *, damping: float, is_centred: bool, is_dense: bool, is_shared: bool) -> Inputs:
        """damping: as a share of each channel's energy; 0 chooses. is_shared: whether several weights read them."""
        H, x = statistics.gram(), statistics.mean()
        G, z = (statistics.cross(), statistics.mean_dense()) if is_dense else (H, x)
        if is_centred:
            G, H = centre_cross(G, z, x), centre(H, x)
        lam = damping or choose_lambda(H.shape[-1], statistics.n)
        silent = sum(int(is_dead(H_g).sum()) for H_g in H)
        return Inputs(statistics.n, lam, silent, H, G, [Gram(dampen(H_g, lam), is_shared) for H_g in H], x, z)


def readers(block: Block, *, is_centred: bool) -> Iterable[list[WeightSite]]:
    """The block's sites, those together that read the same inputs and, where these are centred, all have a bias."""
    found: dict[tuple[int, bool], list[WeightSite]] = {}
    for site in block.segment.sites:
        found.setdefault((id(block.statistics[site]), is_centred and bool(site.offset)), []).append(site)
    return found.values()


def said(solved: Mapping[WeightSite, Mapping[str, float]]) -> Iterator[str]:
    """What was done about Gram matrices that are singular, by the numbers of sites."""
    few = [one["damping"] for site, one in solved.items() if "damping" in one and one["rows"] < site.d]
    if few:
        yield (
            f"damping: weights with more columns than calibration has rows: {len(few)}; their Gram matrices are "
            f"singular, and up to {max(few):.0%} of each input's energy was added"
        )
    silent = [one["silent_inputs"] for one in solved.values() if one.get("silent_inputs")]
    if silent:
        yield (
            f"damping: inputs that never change on calibration data: {sum(silent):.0f}, of {len(silent)} weights; "
            "what reads them was the first to go"
        )
