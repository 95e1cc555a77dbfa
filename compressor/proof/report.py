"""What a run promised and what it delivered: one object that answers `bool()`, and JSON with a versioned schema."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.artifact import REPORT, SCHEMA
from compressor.engine import Engine
from compressor.errors import OutputError
from compressor.proof.costs import CostChange
from compressor.proof.exhibits import Exhibits
from compressor.proof.latency import Comparison
from compressor.proof.parity import Parity
from compressor.source import Score


@dataclass(frozen=True)
class Promise:
    """One thing that was to hold, whether it does, and the figure that tells."""

    name: str
    met: bool
    detail: str


@dataclass(frozen=True)
class SiteRecord:
    """One weight site as it was asked for, and as the written file holds it.

    status: "changed", "left" or "refused"; reason: why, unless changed.
    shape, axis: of the model's own tensor. dense_shape: before channels were removed, where that changed it.
    found: the pattern and the share of zeros, re-read from the file; where: operator and axis that read it there.
    holds: whether the file keeps what was asked, on the axis the runtime contracts; None where nothing was asked.
    verdict: whether a sparse kernel of the runtime can take it, or the rule it breaks; "" for runtimes without any.
    kernel: the kernel that it got in the engine, where that is known.
    relative_error: squared change of the site's outputs on calibration data, as a share of their energy.
    dtype: what the weight is stored in. rounding_error: as relative_error, of its rounding to codes alone.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    axis: int
    status: str
    reason: str = ""
    asked: str = ""
    found: str = ""
    sparsity: float | None = None
    holds: bool | None = None
    where: str = ""
    relative_error: float | None = None
    verdict: str = ""
    kernel: str = ""
    dtype: str = ""
    rounding_error: float | None = None
    dense_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Scores:
    """The same samples scored three times: the dense model and the compressed one in torch, and the artifact.

    drop: how much worse the artifact is than the dense model; percent of the perplexity, or points of top-1.
    stderr: standard error of the drop, from the paired samples. allowed: --max-drop, None when any drop is accepted.
    """

    samples: str
    dense: Score
    compressed: Score
    artifact: Score
    drop: float
    stderr: float
    allowed: float | None

    @property
    def unit(self) -> str:
        return "points" if self.dense.higher_is_better else "%"

    @property
    def in_words(self) -> str:
        return f"{abs(self.drop):.2f} {self.unit} {'better' if self.drop < 0 else 'worse'} than dense"

    @property
    def is_within(self) -> bool:
        return self.allowed is None or self.drop <= self.allowed


@dataclass(frozen=True)
class Unquantized:
    """The artifact beside the model that was quantized, sparse or smaller as that is, in floats: what codes alone cost.

    difference: largest over outputs and workloads, relative to the output's largest value. score: of that model, in
    torch, on the samples of `Scores`. drop, stderr: how much worse the artifact scores than it does.
    """

    difference: float
    score: Score | None = None
    drop: float | None = None
    stderr: float | None = None


@dataclass(frozen=True)
class Sizes:
    """Bytes of the model's files, and its weights: how many, and how many are not zero."""

    dense_bytes: int
    artifact_bytes: int
    parameters: int
    dense_nonzero: int
    nonzero: int


@dataclass(frozen=True)
class Report:
    """Everything that was measured in one run. True when every promise is met.

    parity, scores: None when nothing on this machine runs the artifact; ran_in: what ran it.
    notes: what passes say besides their rows. costs: of each workload, in the graph, whatever runs it.
    exhibits: what the page shows besides. unquantized: where quantize came after other passes.
    engine: how far it came, for runtimes that compile one; latency was then taken on the device, as timed_on says.
    """

    model: str
    task: str
    origin: str
    recipe: str
    pipeline: str
    backend: str
    dtype: str
    gain: str
    calibration: str
    promises: tuple[Promise, ...]
    sites: tuple[SiteRecord, ...]
    scores: Scores | None
    unscored: str
    parity: Parity | None
    latency: tuple[Comparison, ...]
    sizes: Sizes
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    output: str = ""
    engine: Engine | None = None
    ran_in: str = ""
    timed_on: str = "1 thread"
    notes: tuple[str, ...] = ()
    costs: tuple[CostChange, ...] = ()
    exhibits: Exhibits = field(default_factory=Exhibits)
    unquantized: Unquantized | None = None

    def __bool__(self) -> bool:
        return all(promise.met for promise in self.promises)

    def to_json(self) -> str:
        """The report as JSON: `schema`, `passed`, then every field by its name."""
        return as_json(self, passed=bool(self))

    def write(self, path: Path) -> None:
        path.write_text(self.to_json(), encoding="utf-8")


def as_json(result: Any, **more: Any) -> str:
    """A dataclass as JSON: `schema`, what is given besides, then every field by its name."""
    body = {"schema": SCHEMA, **more, **dataclasses.asdict(result)}
    return json.dumps(_finite(body), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(folder: Path) -> dict[str, Any]:
    """The report of an artifact, as its JSON has it. Raises OutputError when there is none of this schema."""
    path, hint = folder / REPORT, "the folder of an artifact, as compress export writes it"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"cannot read {path}", found=error.strerror or "", hint=hint) from None
    except ValueError as error:
        raise OutputError(f"cannot read {path} as JSON", found=str(error), hint=hint) from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != SCHEMA or "promises" not in report:
        raise OutputError(f"{path} is no report of schema {SCHEMA}", found=f"schema {schema}", hint=hint)
    return report


def score_drop(dense: Score, artifact: Score) -> tuple[float, float]:
    """(how much worse the artifact scores, standard error of that), from the same samples in the same order.

    Perplexity: percent of the dense perplexity; the error by the delta method on paired log-losses. Top-1: points.
    """
    pairs = list(zip(dense.per_sample, artifact.per_sample, strict=True))
    differences = [worse - before for before, worse in pairs]
    mean = sum(differences) / len(differences)
    error = _standard_error(differences, mean)
    if dense.higher_is_better:
        return -100 * mean, 100 * error
    ratio = math.exp(min(mean, 700.0))
    return 100 * (ratio - 1), 100 * ratio * error


def _standard_error(values: list[float], mean: float) -> float:
    if len(values) < 2:
        return math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null, and a word."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("infinite" if value > 0 else "-infinite")
    return value
