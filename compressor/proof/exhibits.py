"""What a report shows besides figures: what both models make of the same samples, a corner of a weight, the roofs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from compressor.proof.roofs import Roofs
from compressor.source import Answer


@dataclass(frozen=True)
class Sample:
    """One held-out sample, and what the dense model (in torch) and the artifact (in its runtime) make of it.

    kind: "text" or "picture". question: a text, or a picture as a data URI. wanted: how the text goes on, or the label.
    """

    kind: str
    question: str
    wanted: str
    dense: Answer
    artifact: Answer


@dataclass(frozen=True)
class Texture:
    """The first rows and columns of a weight as the written file holds it, the contracted axis from left to right.

    rows: a character per weight: `.` for zero, 1 to 9 for positive and a to i for negative ones by their size, of the
    largest that is shown. pattern: what was asked for.
    """

    site: str
    pattern: str
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Exhibits:
    """samples: empty where the task or the data has none. texture: None where no weight was changed.

    roofs: of the processor that timed; None where nothing was timed on it. traffic: bytes of the inputs and outputs of
    one call, by workload.
    """

    samples: tuple[Sample, ...] = ()
    texture: Texture | None = None
    roofs: Roofs | None = None
    traffic: Mapping[str, int] = field(default_factory=dict)
