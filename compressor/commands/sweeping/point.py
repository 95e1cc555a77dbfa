"""One recipe of a sweep as a row: what a report says of accuracy, speed and size."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.onnx_file import MODEL_FILE
from compressor.proof.latency import Comparison
from compressor.proof.report import Report

CHUNK = 1 << 20


@dataclass(frozen=True)
class Speed:
    """One workload in milliseconds per call on one thread, batch and length as its name says.

    ratio: how many times faster than the dense twin that was timed in turn; low, high: its quartiles.
    """

    workload: str
    p50: float
    p90: float
    n: int
    dense_p50: float
    dense_p90: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One recipe and what came of it.

    varied: flag -> value, of what differs within the sweep; empty for the dense model.
    value, stderr, n, unit: the artifact's score; drop: how much worse than dense, in percent or points.
    loss: mean negative log-likelihood in nats. bytes: of the model's files; zipped: of the same, deflated.
    texts: beginnings of held-out texts, and how the artifact goes on; empty unless it is a language model.
    seconds: what it took. unmet: promises that were not met. failed: why there is no artifact, "" when there is one.
    """

    varied: dict[str, str]
    recipe: str
    metric: str = ""
    higher_is_better: bool = False
    value: float | None = None
    stderr: float | None = None
    n: int = 0
    unit: str = ""
    loss: float | None = None
    drop: float | None = None
    drop_stderr: float | None = None
    speeds: tuple[Speed, ...] = ()
    bytes: int = 0
    zipped: int = 0
    parameters: int = 0
    nonzero: int = 0
    seconds: float = 0.0
    unmet: tuple[str, ...] = ()
    failed: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """`0.5 wanda`, or `dense`."""
        return " ".join(self.varied.values()) or "dense"

    @property
    def is_scored(self) -> bool:
        return self.value is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Of a language model that decodes one sequence with its cache; None for other models, or when not timed."""
        return 1000 / self._decode.p50 if self._decode else None

    def rate(self, dense: "Point") -> float | None:
        """Tokens per second at the pace that the machine had with the dense model: its rate, times the ratio to the
        twin that was timed in turn. Their own milliseconds may be of another hour."""
        per_second = dense.tokens_per_second
        return per_second * self._decode.ratio if per_second and self._decode else None

    @property
    def _decode(self) -> Speed | None:
        return next((one for one in self.speeds if one.workload.startswith("decode")), None)

    @property
    def time_share(self) -> float | None:
        """Time per call of the first workload as a share of the dense twin's, timed in turn; None when not timed."""
        return 1 / self.speeds[0].ratio if self.speeds else None


def point_of(report: Report, artifact: Path, varied: Mapping[str, str]) -> Point:
    """What a report says, and how small its artifact can be packed."""
    scores, sizes = report.scores, report.sizes
    scored: dict[str, Any] = {}
    if scores is not None:
        own = scores.artifact
        scored = {
            "metric": own.metric, "higher_is_better": own.higher_is_better, "value": own.value, "stderr": own.stderr,
            "n": own.n, "unit": own.unit, "loss": own.loss, "drop": scores.drop + 0.0, "drop_stderr": scores.stderr,
        }  # fmt: skip
    return Point(
        dict(varied),
        report.recipe,
        **scored,
        speeds=tuple(map(_speed, report.latency)),
        bytes=sizes.artifact_bytes,
        zipped=zipped_size(artifact),
        parameters=sizes.parameters,
        nonzero=sizes.nonzero,
        seconds=sum(report.seconds.values()),
        unmet=tuple(f"{one.name}: {one.detail}" for one in report.promises if not one.met),
        facts=_facts(report),
        texts=_texts(report),
    )


def read_point(body: Mapping[str, Any], varied: Mapping[str, str]) -> Point:
    """A point that was kept as JSON, under the labels of this sweep."""
    speeds = tuple(Speed(**one) for one in body["speeds"])
    texts = tuple((question, answer) for question, answer in body["texts"])
    return Point(**{**body, "varied": dict(varied), "speeds": speeds, "unmet": tuple(body["unmet"]), "texts": texts})


def zipped_size(folder: Path) -> int:
    """Bytes of a model's files after deflate at its fastest: what zeros are worth to a file that is packed."""
    return sum(_deflated(path) for path in sorted(folder.glob(f"{MODEL_FILE}*")))


def _deflated(path: Path) -> int:
    packer, size = zlib.compressobj(level=1), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size += len(packer.compress(chunk))
    return size + len(packer.flush())


def _speed(row: Comparison) -> Speed:
    own, (low, high) = row.latency["artifact"], row.spread["artifact"]
    dense = row.latency["dense"]
    return Speed(row.workload, own.p50, own.p90, own.n, dense.p50, dense.p90, row.ratio["artifact"], low, high)


def timed_beside(point: Point) -> tuple[Speed, ...]:
    """The dense twin that was timed in turn with a point, as speeds of its own."""
    return tuple(
        Speed(one.workload, one.dense_p50, one.dense_p90, one.n, one.dense_p50, one.dense_p90, 1.0, 1.0, 1.0)
        for one in point.speeds
    )


def _texts(report: Report) -> tuple[tuple[str, str], ...]:
    """How texts go on; a text that was classified has a share instead."""
    samples = [one for one in report.exhibits.samples if one.kind == "text" and one.artifact.share is None]
    return tuple((one.question, one.artifact.text) for one in samples)


def _facts(report: Report) -> dict[str, str]:
    """What is alike for the whole sweep."""
    return {
        "model": report.model,
        "origin": report.origin,
        "backend": f"{report.backend} {report.dtype}",
        "scored on": report.scores.samples if report.scores else report.unscored,
        "calibrated on": report.calibration,
        "timed on": report.timed_on,
    }
