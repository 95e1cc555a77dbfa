"""What the core asks of a model, whatever it came from, and what it asks of a runtime.

A source lowers its model to a Graph and brings the data: batches to calibrate on, samples to learn from, an evaluation,
inputs to time. A backend builds a file from a Graph, opens it, and says what a pattern is worth on its hardware.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from compressor.graph import Feeds, Graph, Run
from compressor.quantization import Kernels


@dataclass(frozen=True)
class Options:
    """How a source is opened.

    data: where calibration and evaluation samples come from; None takes the task's default.
    window: tokens per text sample, at most the model's context.
    seed: chooses samples and masked positions.
    remote_code: whether code in a model's repository may run.
    """

    data: str | None = None
    window: int = 256
    seed: int = 0
    remote_code: bool = False


@dataclass(frozen=True)
class Score:
    """A task metric on n samples.

    value: perplexity, or top-1 in percent. stderr: its standard error over samples.
    per_sample: what `value` is the mean of (negative log-likelihood in nats per window, 0 or 1 per image).
    loss: mean negative log-likelihood in nats, also where `value` counts right answers; None when nobody took it.
    """

    metric: str
    value: float
    n: int
    unit: str
    stderr: float
    higher_is_better: bool
    per_sample: tuple[float, ...] = field(default=(), repr=False, compare=False)
    loss: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Held-out samples: what they are, and how a runtime is scored on them."""

    description: str
    score: Callable[[Run], Score]


@dataclass(frozen=True)
class Answer:
    """What a model makes of one sample: a text, or a class and its probability."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class Showcase:
    """A few held-out samples for people to look at.

    kind: "text" or "picture". questions: texts, or pictures as data URIs. wanted: how the text really goes on, or the
    label. answers: what a runtime makes of each.
    """

    kind: str
    questions: tuple[str, ...]
    wanted: tuple[str, ...]
    answers: Callable[[Run], list[Answer]]


@dataclass(frozen=True)
class Training:
    """Samples to learn from, none of them among those that are scored.

    n: how many there are. description: one sentence on what they are.
    batch: (numbers of samples, seed of what is drawn at random) -> inputs by name, and the targets of the loss.
    loss: (first output, targets) -> mean loss over a batch, in nats; None when the samples have no labels.
    is_logits: whether the last axis of the first output holds the logits of classes.
    at_once: how many samples go through the model at once, so that their activations fit into memory.
    """

    n: int
    description: str
    batch: Callable[[Sequence[int], int], tuple[Feeds, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor] | None
    is_logits: bool = True
    at_once: int = 32


@runtime_checkable
class Source(Protocol):
    """A model and its data.

    name: what the user typed. task: `text-generation`, `image-classification`, ...
    origin: one sentence on where the weights came from.
    """

    name: str
    task: str
    origin: str

    def lower(self, dtype: str = "float32") -> Graph:
        """The model as a Graph in that dtype; in float32 it shares the model's own tensors."""

    def calibration(self, n: int) -> Sequence[Feeds]:
        """Batches of n samples in all, never among those that are scored."""

    @property
    def calibration_description(self) -> str:
        """One sentence on the calibration samples."""

    def training(self, n: int | None = None) -> Training:
        """n samples to learn from, or all there are; never among those that are scored."""

    def evaluation(self, n: int) -> Evaluation | None:
        """n held-out samples, or None when the data has no labels."""

    def showcase(self) -> Showcase | None:
        """A few held-out samples to look at, or None when the task or the data has none."""

    def workloads(self) -> Mapping[str, Feeds]:
        """Representative inputs to time, by name (`prefill`, `decode`)."""

    def generate(self, run: Run, n_tokens: int) -> Tensor | None:
        """Greedy continuations of fixed prompts as token ids (prompts, n_tokens); None when the task has none."""

    def save(self, folder: Path, graph: Graph) -> str:
        """Write beside the artifact what its library needs to load it: configuration, tokenizer, manifest.

        Returns a sentence where there is more to say, as on a model that has lost channels; else "".
        """


@dataclass(frozen=True)
class Probe:
    """Whether a backend can work here, its version, and what to type where something is missing."""

    available: bool
    version: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Stored:
    """A site's weight as the written file holds it.

    W: the values, or their codes, with the contracted axis moved last. where: the operator and axis that read it
    (`Gemm axis 0`). dtype: of what is stored (`float32`, `int8`, `int4`). scale: of the codes, where there are any.
    floats: whether its runtime multiplies codes as floats after all.
    """

    W: Any
    where: str
    dtype: str = ""
    scale: Any = None
    floats: bool = False


class Backend(Protocol):
    """One runtime. `name` is what `--backend` takes; `quantizes` the kinds of quantization that it has kernels for."""

    name: str
    quantizes: Mapping[str, Kernels]

    def probe(self) -> Probe:
        """Can it work on this machine?"""

    def gain(self, pattern: str) -> str:
        """What this runtime gains from a pattern, in one sentence."""

    def dtypes(self) -> Sequence[str]:
        """Precisions it can build."""

    def build(self, graph: Graph, folder: Path) -> None:
        """Write the model into a folder."""

    def open(self, folder: Path, threads: int = 0) -> Run:
        """Load a written model; `threads` 0 leaves the choice to the runtime. ONNX Runtime also takes an .onnx file."""

    def stored(self, folder: Path) -> dict[str, Stored]:
        """Every site's weight, re-read from the written file, by site name."""
