"""Runtimes that compile an engine out of the file: what the core asks of them besides the file, and what they answer.

An engine is built on the kind of device that runs it, which may not be the machine that wrote the file. So the file and
all that the build takes are written first; `build_engine` finishes the job there, and says how far it came here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from compressor.graph import Feeds
from compressor.progress import Progress
from compressor.shapes import Range
from compressor.source import Backend


@dataclass(frozen=True)
class Verdict:
    """One contraction of a stored weight, as a sparse kernel would see it.

    site: the weight's name. op, shape, axis: the operator, the weight as it reads it, and the axis it contracts there.
    dtype: what is multiplied. zeros: share of the values.
    is_eligible: whether a sparse kernel can take it. is_meant: whether its zeros tell that one should.
    rule: which rule it breaks ("" for none; "alignment" is advice and leaves it eligible). detail: what breaks it.
    """

    site: str
    op: str
    shape: tuple[int, ...]
    axis: int
    dtype: str
    zeros: float
    is_eligible: bool
    is_meant: bool
    rule: str = ""
    detail: str = ""

    @property
    def word(self) -> str:
        """`eligible`, or the rule it breaks."""
        return "eligible" if self.is_eligible else self.rule

    def __str__(self) -> str:
        if not self.is_eligible:
            return f"{self.rule}: {self.detail}"
        return f"eligible; {self.detail}" if self.detail else "eligible"


@dataclass(frozen=True)
class Layer:
    """A layer of the engine: its name there, the site in it ("" when none), and the kernel that the builder chose."""

    name: str
    tactic: str
    is_sparse: bool
    site: str = ""


@dataclass(frozen=True)
class Engine:
    """How far the engine came on this machine, and what the builder said.

    is_built, runs_here; why: what stopped it, "" when nothing did; command: what finishes the job, and where.
    eligible, chosen: layers that the builder's log counts as fit for sparse kernels, and as given one; None when it
    does not say. layers: what the engine's inspector lists, empty when it cannot be asked here.
    """

    runtime: str
    is_built: bool = False
    runs_here: bool = False
    why: str = ""
    command: str = ""
    seconds: float = 0.0
    bytes: int = 0
    eligible: int | None = None
    chosen: int | None = None
    layers: tuple[Layer, ...] = field(default=(), repr=False)

    def summary(self) -> str:
        """What became of sparsity in the engine, in one sentence."""
        if not self.is_built:
            return "no engine was built here"
        if self.eligible is None or self.chosen is None:
            return f"{self.runtime} did not say which layers get sparse kernels"
        left = self.eligible - self.chosen
        faster = f"; dense was faster on {left}" if left else ""
        return f"{self.runtime}: eligible {self.eligible}, chosen {self.chosen}{faster}"

    def kernel(self, site: str) -> str:
        """Which kernel a site got: `sparse NAME`, `dense NAME`, or "" when the inspector does not tell."""
        own = [layer for layer in self.layers if layer.site == site and layer.tactic]
        best = next((layer for layer in own if layer.is_sparse), own[0] if own else None)
        return f"{'sparse' if best.is_sparse else 'dense'} {best.tactic}" if best else ""


@runtime_checkable
class EngineBackend(Backend, Protocol):
    """A backend that compiles engines."""

    def check(self, path: Path) -> tuple[Verdict, ...]:
        """Each contraction of a stored weight in an ONNX file; needs no device."""

    def prepare(self, folder: Path, shapes: Mapping[str, Range]) -> None:
        """Write beside the model what the build takes. shapes: symbol -> least, usual and most."""

    def build_engine(self, folder: Path, progress: Progress) -> Engine:
        """Build as much as this machine can. Raises BackendError when the model can be built nowhere."""

    def time_engines(self, folder: Path, feeds: Feeds) -> dict[str, list[float]]:
        """Milliseconds per call on the device: `dense`, built from the same file, and `sparse`, in turn."""
