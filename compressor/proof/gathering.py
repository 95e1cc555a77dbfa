"""Gathers what a report shows, while the artifact is proved."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from compressor.graph import Feeds, Run
from compressor.pattern import NM, parse_pattern
from compressor.proof.exhibits import Exhibits, Sample, Texture
from compressor.proof.report import SiteRecord
from compressor.proof.roofs import measure_roofs
from compressor.source import Answer, Showcase, Source, Stored

ROWS, COLUMNS = 24, 64
LEVELS = 9


class Gallery:
    """A source's samples, shown to the dense model first, and later to the artifact."""

    def __init__(self, source: Source, dense: Run):
        self._showcase = source.showcase()
        self._dense = self._showcase.answers(dense) if self._showcase else []

    def exhibits(
        self,
        artifact: Run | None,
        sites: Iterable[SiteRecord],
        stored: Mapping[str, Stored],
        timed: Mapping[str, Feeds],
    ) -> Exhibits:
        """timed: the workloads that are timed on this processor; none where a device is timed, or nothing is."""
        made = texture(sites, stored)
        if artifact is None:
            return Exhibits(texture=made)
        samples = paired(self._showcase, self._dense, self._showcase.answers(artifact)) if self._showcase else ()
        roofs = measure_roofs() if timed else None
        return Exhibits(samples, made, roofs, traffic(artifact, timed))


def traffic(run: Run, workloads: Mapping[str, Feeds]) -> dict[str, int]:
    """Bytes of the inputs and outputs of one call of each workload."""
    return {name: sum(x.nbytes for x in (*feeds.values(), *run(feeds).values())) for name, feeds in workloads.items()}


def paired(showcase: Showcase, dense: Sequence[Answer], artifact: Sequence[Answer]) -> tuple[Sample, ...]:
    """The samples with the answers of both."""
    rows = zip(showcase.questions, showcase.wanted, dense, artifact, strict=True)
    return tuple(Sample(showcase.kind, *row) for row in rows)


def texture(sites: Iterable[SiteRecord], stored: Mapping[str, Stored]) -> Texture | None:
    """A corner of the first weight that was to take an N:M pattern, else of the first that was to take zeros at all."""
    changed = [site for site in sites if site.status == "changed" and site.asked and site.name in stored]
    if not changed:
        return None
    site = next((one for one in changed if isinstance(parse_pattern(one.asked), NM)), changed[0])
    W = stored[site.name].W
    return Texture(site.name, site.asked, _characters(W.reshape(-1, W.shape[-1])[:ROWS, :COLUMNS].double()))


def _characters(W: Tensor) -> tuple[str, ...]:
    largest = W.abs().max().clamp_min(1e-300)
    # Not even the smallest may pass for a zero.
    levels = (W.abs() / largest * LEVELS).ceil().clamp_min(1).long() * W.sign().long()  # -9 to 9
    return tuple("".join(map(_character, row)) for row in levels.tolist())


def _character(level: int) -> str:
    if level == 0:
        return "."
    return str(level) if level > 0 else chr(ord("a") - level - 1)
