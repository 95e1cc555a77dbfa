"""What a pass is, and how a list of them runs.

A pass is a frozen dataclass: its fields are its options, its `str()` parses back, and it keeps no state. `run` changes
the graph and returns one row per site it was asked about; `ensures` re-reads the graph and trusts nothing. Between
passes anything may hold; after each, the graph verifies.
"""

import dataclasses
import difflib
import fnmatch
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from compressor import debugging
from compressor.errors import RecipeError
from compressor.graph import Feeds, Graph
from compressor.orphans import Orphan
from compressor.progress import Progress, Quiet
from compressor.quantization import Kernels
from compressor.registry import load
from compressor.sites import WeightSite
from compressor.source import Training
from compressor.spec import build, format_spec, parse_specs

Status = Literal["changed", "left", "refused"]
Shapes = tuple[tuple[int, ...], tuple[int, ...]] | None  # before and after


@dataclass(frozen=True)
class Row:
    """What became of one site.

    status: "changed"; "left" dense because the request did not name it; or "refused" though it was named.
    reason: why it was left or refused; empty when changed.
    asked: the pattern that its weight was to take, where one was asked for.
    dtype: the type that its weight was to be stored in, where one was asked for (`int8`).
    shapes: of its weight, before and after, where the pass removes channels.
    numbers: figures of the change, by name (`sparsity`, `relative_error`).
    """

    site: str
    status: Status
    reason: str = ""
    asked: str = ""
    dtype: str = ""
    shapes: Shapes = None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One pass's rows, what else it has to say in sentences, and how long it took in seconds."""

    rows: tuple[Row, ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def of(self, status: Status) -> list[Row]:
        return [row for row in self.rows if row.status == status]


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the graph.

    calibration: batches of n samples (inputs by name). seed: for every random choice.
    dense: a copy of the graph from before the first pass, where a pass of the pipeline says `needs_dense`.
    training: n samples to learn from, or all there are for None.
    kept: a folder that outlives a killed run, to go on from; None when nothing is to be kept.
    kernels: what the backend's kernels ask of codes, by kind of quantization.
    is_logits: whether the last axis of the scored output holds the logits of classes.
    latency: milliseconds of a graph, built for the backend, on the first workload; None where nothing here runs it.
    """

    calibration: Callable[[int], Sequence[Feeds]] = lambda n: []
    seed: int = 0
    progress: Progress = field(default_factory=Quiet)
    dense: Graph | None = None
    training: Callable[[int | None], Training] | None = None
    kept: Path | None = None
    kernels: Mapping[str, Kernels] = field(default_factory=dict)
    is_logits: bool = True
    latency: Callable[[Graph], float] | None = None


class Pass(Protocol):
    """One transformation. Implementations are frozen dataclasses registered under `name`.

    samples: how many calibration samples it uses; needs_data: whether it uses any.
    needs_dense: whether it reads the model as it was before the first pass (`Context.dense`).
    A pass that can do without data may say with which flags, as `without_data`.
    """

    name: ClassVar[str]

    @property
    def samples(self) -> int: ...

    @property
    def needs_data(self) -> bool: ...

    @property
    def needs_dense(self) -> bool: ...

    def plan(self, graph: Graph) -> list[Row]:
        """What `run` would do to each site, touching no weight."""

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Change the graph."""

    def ensures(self, graph: Graph, outcome: Outcome) -> None:
        """Raise InternalError unless every row marked "changed" is true of the graph as it now stands."""


@runtime_checkable
class Learner(Protocol):
    """What a pass offers besides when it trains.

    training_samples: how many it learns from; None for all there are.
    """

    @property
    def training_samples(self) -> int | None: ...

    def check(self, training: Training) -> None:
        """Raise DataError when these samples will not do; called before any time is spent."""

    def foretell(self, graph: Graph, training: Training) -> str:
        """How much it would train, and how long that takes on this machine; touches no weight."""


@dataclass(frozen=True)
class SiteLoss:
    """What zeros in one site cost the model's loss, were it the only one that has any.

    size: its weights. shares, losses: the curve. pattern: what the recipe gives it, or "dense"; loss: what that costs.
    """

    site: str
    size: int
    shares: tuple[float, ...]
    losses: tuple[float, ...]
    pattern: str
    loss: float


@runtime_checkable
class Weigher(Protocol):
    """What a pass offers besides when it can tell what it costs before it is run.

    gradient_samples: how many calibration samples it runs back through the dense model when it is run itself.
    """

    @property
    def gradient_samples(self) -> int: ...

    def weigh(self, graph: Graph, context: Context) -> list[SiteLoss]:
        """Of each site that it would change; touches no weight."""


@runtime_checkable
class Softenable(Protocol):
    """What a pass offers besides when it can be asked to spare some sites, so that a budget holds.

    spared: what becomes of these, in words ("in float").
    """

    @property
    def spared(self) -> str: ...

    def spares(self, outcome: Outcome) -> list[str]:
        """The sites, of those that it changed, that it could spare."""

    def sparing(self, names: Sequence[str]) -> Pass:
        """The same pass, which spares these."""


@dataclass(frozen=True)
class Effort:
    """What a pass does with each block besides looking at it.

    solves: how often its sites are solved. is_beside: whether the dense model is run beside. checks: how often samples
    held out are asked. steps: of gradient descent. observed: samples that are run through the model before all this.
    distilled: steps of gradient descent through the whole model after it, each for so many predictions (`rows`).
    """

    solves: int = 1
    is_beside: bool = False
    checks: int = 0
    steps: int = 0
    observed: int = 0
    distilled: int = 0
    rows: int = 0


@runtime_checkable
class Blockwise(Protocol):
    """What a pass offers besides when it goes over the blocks of a graph."""

    def effort(self, graph: Graph) -> Effort: ...


Observer = Callable[[int, str, Graph], None]  # (stage number, its name, the graph after it)


def run_pipeline(
    graph: Graph, passes: Iterable[Pass], context: Context, observers: Sequence[Observer] = ()
) -> list[Outcome]:
    """Run each pass, verify the graph, check what the pass promised, then call the observers."""
    graph.verify()
    for observe in observers:
        observe(0, "input", graph)
    outcomes = []
    for number, one in enumerate(passes, start=1):
        start = time.perf_counter()
        outcome = one.run(graph, context)
        graph.verify()
        one.ensures(graph, outcome)
        outcomes.append(dataclasses.replace(outcome, seconds=time.perf_counter() - start))
        _note(one, outcomes[-1])
        for observe in observers:
            observe(number, one.name, graph)
    return outcomes


def _note(one: Pass, outcome: Outcome) -> None:
    """For COMPRESS_DEBUG."""
    counts = ", ".join(f"{len(outcome.of(status))} {status}" for status in ("changed", "left", "refused"))
    debugging.note(debugging.STEPS, f"{format_pass(one)}: {outcome.seconds:.2f} s, {counts}")
    for row in (*outcome.of("left"), *outcome.of("refused")):
        debugging.note(debugging.SITES, f"  {row.status} {row.site}: {row.reason}")


def parse_pass(text: str) -> Pass:
    """`sparsify{pattern=2:4}` -> the pass. Raises RecipeError."""
    (name, options), *more = parse_specs(text)
    if more:
        raise RecipeError(f"{text!r} is more than one pass", hint=f"{name}{{...}} alone")
    return make_pass(name, options)


def make_pass(name: str, options: dict[str, Any]) -> Pass:
    """The registered pass of that name with these options. Raises RecipeError."""
    return build(load("passes", name), options, name)


def format_pass(one: Pass) -> str:
    """`sparsify{pattern=2:4,...}`, which `parse_pass` reads back."""
    return format_spec(one.name, one)


LEFT = {
    "stem": "the stem reads the input: dense unless named by --targets",
    "head": "the head makes the scored output: dense unless named by --targets",
    "tied": "tied to an embedding: dense unless named by --targets",
}


def choose(
    sites: Iterable[WeightSite],
    targets: Sequence[str],
    ignore: Sequence[str],
    orphans: Iterable[Orphan] = (),
    left: Mapping[str, str] = LEFT,
) -> tuple[list[WeightSite], list[Row]]:
    """Sites that the globs name, and a row for each other weight: "left", or "refused" where an orphan is named.

    left: the roles that are left alone unless a glob other than `*` names them, with the reason.
    A glob matches a name with or without its `.weight`. Raises RecipeError when a glob names nothing.
    """
    sites, orphans = list(sites), list(orphans)
    for glob in (*targets, *ignore):
        check_glob(glob, [site.name for site in sites] + [one.name for one in orphans])
    named, rows = [], []
    for site in sites:
        reason = _why_left(site, targets, ignore, left)
        if reason:
            rows.append(Row(site.name, "left", reason))
        else:
            named.append(site)
    asked = [one for one in orphans if one.is_refused and is_named(one.name, targets, ignore)]
    return named, rows + [Row(one.name, "refused", one.reason) for one in asked]


def in_order(rows: Iterable[Row], graph: Graph, nothing: str, hint: str) -> list[Row]:
    """The rows in the order of the graph's sites. Raises RecipeError when none of them is "changed".

    nothing, hint: what that error says, and what to type instead.
    """
    rows = list(rows)
    if not any(row.status == "changed" for row in rows):
        reasons = sorted({f"{row.reason} ({row.site})" for row in rows})
        raise RecipeError(nothing, found="; ".join(reasons[:4]) or "a model without weight sites", hint=hint)
    order = {site.name: position for position, site in enumerate(graph.sites)}
    return sorted(rows, key=lambda row: order.get(row.site, len(order)))


def is_named(name: str, targets: Sequence[str], ignore: Sequence[str]) -> bool:
    """Whether a glob of the targets names it, and none of those to ignore."""
    return not any(matches(name, glob) for glob in ignore) and any(matches(name, glob) for glob in targets)


def check_glob(glob: str, names: Sequence[str], what: str = "weight") -> None:
    """Raise RecipeError when a glob names none of these. what: what they are the names of."""
    if glob == "*" or not names or any(matches(name, glob) for name in names):
        return
    near = difflib.get_close_matches(glob, names, n=3, cutoff=0.0)
    raise RecipeError(f"no {what} is named {glob!r}", found=f"the nearest are {', '.join(near)}", hint=near[0])


def matches(name: str, glob: str) -> bool:
    """Whether a glob matches a weight's name, with or without its `.weight`."""
    return any(fnmatch.fnmatchcase(form, glob) for form in (name, name.removesuffix(".weight")))


def _why_left(site: WeightSite, targets: Sequence[str], ignore: Sequence[str], left: Mapping[str, str]) -> str:
    if any(matches(site.name, glob) for glob in ignore):
        return "ignored by request"
    matching = [glob for glob in targets if matches(site.name, glob)]
    if not matching:
        return "not among the targets"
    return left.get(site.role, "") if set(matching) == {"*"} else ""


def dump_graphs(folder: Path) -> Observer:
    """An observer that writes `00-input.txt`, `01-sparsify.txt`, `01-sparsify.diff`, ... into a folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(number: int, name: str, text: list[str], changes: list[str]) -> None:
        (folder / f"{number:02d}-{name}.txt").write_text("\n".join(text) + "\n")
        if number:
            (folder / f"{number:02d}-{name}.diff").write_text("\n".join(changes) + "\n")

    return _observer(write)


def show_changes() -> Observer:
    """An observer that prints what each pass changed in the graph, for COMPRESS_DEBUG."""

    def write(number: int, name: str, text: list[str], changes: list[str]) -> None:
        if number:
            debugging.note(debugging.DIFFS, "\n".join([f"after {name}:", *changes]))

    return _observer(write)


def _observer(write: Callable[[int, str, list[str], list[str]], None]) -> Observer:
    """An observer that calls `write` with the stage, its name, the graph's text, and the diff from the stage before."""
    before: list[str] = []

    def observe(number: int, name: str, graph: Graph) -> None:
        text = _described(graph)
        write(number, name, text, list(difflib.unified_diff(before, text, "before", "after", lineterm="", n=1)))
        before[:] = text

    return observe


def _described(graph: Graph) -> list[str]:
    sites = [
        f"# {site.name} {list(site.shape)} {site.op} axis={site.axis} zeros={_zeros(site):.1%}" for site in graph.sites
    ]
    return [*graph.text().splitlines(), *sites]


def _zeros(site: WeightSite) -> float:
    return (site.weight == 0).float().mean().item()
