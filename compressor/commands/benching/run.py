"""Times contestants in turn, one use each per round, so that noise falls on all alike."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from compressor.commands.benching import memory
from compressor.commands.benching.contestant import Contestant, find
from compressor.commands.benching.feeds import Signature, signature
from compressor.commands.sampling import chooser, tokens
from compressor.errors import BackendError, RecipeError
from compressor.graph import Run
from compressor.progress import QUIET, Progress
from compressor.proof.latency import Comparison, Latency, compare, compared
from compressor.proof.report import as_json
from compressor.run import environment
from compressor.shapes import parse_shapes

ROUNDS = (4, 50)


@dataclass(frozen=True)
class Settings:
    """How to time. batches: of models that are no language models. prompt, new: tokens of those that are.

    seconds: about how long each workload is measured. sizes: lengths of axes that vary, by symbol.
    """

    threads: int = 1
    seconds: float = 4.0
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 64
    new: int = 16
    sizes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Entry:
    """One contestant. memory: bytes by which opening and running it raises the peak of a fresh process, None when that
    failed. first: milliseconds to the first token; tokens_per_second: after it, the median; None for other models."""

    name: str
    what: str
    file_bytes: int
    memory: int | None
    first: Latency | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Bench:
    """What was timed. latency: a comparison per workload, the first contestant the reference; missing: what was not.

    settings: how. environment: versions of what took part.
    """

    settings: Settings
    entries: tuple[Entry, ...]
    latency: tuple[Comparison, ...]
    missing: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return as_json(self)


def bench(
    names: Sequence[str],
    settings: Settings | None = None,
    *,
    trust_remote_code: bool = False,
    progress: Progress = QUIET,
) -> Bench:
    """Time artifacts, ONNX files and models in ONNX Runtime on this processor.

    Raises a UserError when one cannot be opened or run, or when language models are to be compared with others.
    """
    settings = settings or Settings()
    _check(names, settings)
    with tempfile.TemporaryDirectory() as scratch:
        found = []
        for at, name in enumerate(names):
            progress.say(f"open {name}")
            found.append(find(name, trust_remote_code, Path(scratch) / str(at)))
        return _bench(found, settings, progress)


def _check(names: Sequence[str], settings: Settings) -> None:
    if len(set(names)) < len(names):
        raise RecipeError("a model cannot run against itself", found=", ".join(names), hint="each name once")
    if min(settings.threads, settings.prompt, *settings.batches) < 1 or settings.new < 2 or settings.seconds <= 0:
        raise RecipeError("threads, batches, tokens and seconds are positive, and new tokens at least 2")


def _bench(found: Sequence[Contestant], settings: Settings, progress: Progress) -> Bench:
    signatures = {one.name: signature(one.file) for one in found}
    kinds = {one.is_language_model for one in signatures.values()}
    if len(kinds) > 1:
        raise RecipeError("language models and others cannot be compared", found=", ".join(signatures))
    runs = {one.name: one.open(settings.threads) for one in found}
    progress.say("time them in turn")
    try:
        timed = _talk(runs, signatures, settings) if kinds == {True} else _call(runs, signatures, settings)
    except (RecipeError, BackendError):
        raise
    except Exception as error:
        hint = "fewer --prompt-tokens and --new-tokens, or another --batch" if kinds == {True} else "another --batch"
        text = " ".join(str(error).split())[:200]
        raise BackendError("ONNX Runtime cannot run one of them on these inputs", found=text, hint=hint) from error
    progress.say("measure memory, each in a process of its own")
    entries = tuple(_entry(one, timed, settings) for one in found)
    missing = tuple(one.missing for one in found if one.missing)
    return Bench(settings, entries, timed, missing, environment())


def _entry(one: Contestant, timed: Sequence[Comparison], settings: Settings) -> Entry:
    held = memory.peak(one.file, settings.threads, settings.prompt, settings.batches[0], dict(settings.sizes or {}))
    talks = timed[0].workload.startswith("first token")
    return Entry(
        one.name,
        one.what,
        one.bytes,
        held,
        timed[0].latency[one.name] if talks else None,
        1000 / timed[1].latency[one.name].p50 if talks else None,
    )


# *** language models ***


def _talk(runs: Mapping[str, Run], kinds: Mapping[str, Signature], settings: Settings) -> tuple[Comparison, ...]:
    """Milliseconds to the first token after a prompt, and per token after that."""
    first: dict[str, list[float]] = {name: [] for name in runs}
    later: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        _say(run, kinds[name], settings)  # warm up
    start, names, round_ = time.perf_counter(), list(runs), 0
    while round_ < ROUNDS[0] or (round_ < ROUNDS[1] and time.perf_counter() - start < 2 * settings.seconds):
        for name in names if round_ % 2 == 0 else reversed(names):
            times = _say(runs[name], kinds[name], settings)
            first[name].append(times[0])
            later[name].append(sum(times[1:]) / len(times[1:]))
        round_ += 1
    return (
        compared(f"first token after {settings.prompt}", first),
        compared(f"a token of {settings.new}", later),
    )


def _say(run: Run, kind: Signature, settings: Settings) -> list[float]:
    """Milliseconds that each of the new tokens took."""
    stream = tokens(run, kind.empty_cache(), kind.prompt(settings.prompt), chooser(0, 0))
    times, last = [], time.perf_counter()
    for _ in islice(stream, settings.new):
        now = time.perf_counter()
        times.append(1000 * (now - last))
        last = now
    return times


# *** others ***


def _call(runs: Mapping[str, Run], kinds: Mapping[str, Signature], settings: Settings) -> tuple[Comparison, ...]:
    rows = []
    for batch in settings.batches:
        own = {name: _bound(run, kinds[name], batch, settings) for name, run in runs.items()}
        rows.append(compare(own, f"batch of {batch}", {}, seconds=settings.seconds, rounds=(10, 200)))
    return tuple(rows)


def _bound(run: Run, kind: Signature, batch: int, settings: Settings) -> Run:
    """The call on inputs of its own, whatever it is given: names may differ from one contestant to the next."""
    feeds = kind.sample(batch, settings.sizes or {})
    return lambda _: run(feeds)


def sizes_of(texts: Sequence[str]) -> dict[str, int]:
    """`SYMBOL=LENGTH` flags. Raises RecipeError."""
    return {symbol: usual for symbol, (_, usual, _) in parse_shapes(texts).items()}
