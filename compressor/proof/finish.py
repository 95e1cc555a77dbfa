"""From the written file to the engine: what this machine can do, what stands in for what it cannot, and what is proved.

An engine is proved where it runs. Elsewhere ONNX Runtime runs the very same file in its place, for parity and score,
and the report says so; the engine's own promise is then not met, with the command that finishes the job.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from compressor.engine import Engine, EngineBackend, Verdict
from compressor.errors import BackendError
from compressor.graph import Feeds, Run
from compressor.pattern import NM, parse_pattern
from compressor.proof.latency import Comparison, compare, compared
from compressor.proof.parity import TOLERANCE, difference
from compressor.proof.report import Promise, SiteRecord
from compressor.registry import load
from compressor.source import Backend

REFERENCE, ALLOWED = "reference.safetensors", "allowed"
STAND_IN = "onnxruntime"


@dataclass(frozen=True)
class Opened:
    """What runs the artifact here: the call, None when nothing can; its name; and why it is not the artifact's own."""

    run: Run | None
    by: str
    why: str = ""


def open_artifact(backend: Backend, folder: Path, engine: Engine | None) -> Opened:
    """The artifact in its own runtime where that runs here, else in ONNX Runtime."""
    if engine is None or engine.runs_here:
        return Opened(backend.open(folder), backend.name)
    run, why = stand_in(folder)
    return Opened(run, STAND_IN, engine.why) if run else Opened(None, "", f"{engine.why}; {why}")


def stand_in(folder: Path, threads: int = 0) -> tuple[Run | None, str]:
    """The artifact in ONNX Runtime, or None and why it cannot run it."""
    other: Backend = load("backends", STAND_IN)(exact=True)
    try:
        return other.open(folder, threads), ""
    except BackendError as error:
        return None, f"{error.what} ({error.found})"


# *** what the report says of an engine ***


def with_verdicts(
    sites: Sequence[SiteRecord], verdicts: Sequence[Verdict], engine: Engine | None
) -> tuple[SiteRecord, ...]:
    """The sites, each with whether a sparse kernel can take it, and which kernel it got."""
    by_site = {one.site: one for one in verdicts}
    return tuple(
        dataclasses.replace(site, verdict=str(by_site[site.name]), kernel=engine.kernel(site.name) if engine else "")
        if site.name in by_site
        else site
        for site in sites
    )


def engine_promises(sites: Sequence[SiteRecord], engine: Engine) -> tuple[Promise, ...]:
    """That sparse kernels can take what was pruned for them, and that there is an engine which ran."""
    asked = [site for site in sites if site.holds is not None and _suits_kernels(site.asked)]
    unfit = [site for site in asked if not site.verdict.startswith("eligible")]
    fit = f"{len(asked) - len(unfit)} of {len(asked)} sites are eligible"
    if unfit:
        fit += f"; not {unfit[0].name} ({unfit[0].verdict or 'not found in the file'})"
    promised = [Promise("sparse kernels can take what is sparse", not unfit, fit)] if asked else []
    left = f"; on a GPU host: {engine.command}" if engine.command else ""
    done = engine.summary() if engine.runs_here else engine.why + left
    return (*promised, Promise("the engine is built and has run", engine.runs_here, done))


def _suits_kernels(asked: str) -> bool:
    pattern = parse_pattern(asked) if asked else None
    return isinstance(pattern, NM) and pattern.m == 4 and pattern.n <= 2


# *** inputs and outputs that travel with the artifact ***


def write_reference(folder: Path, run: Run, workloads: Mapping[str, Feeds], allowed: float) -> None:
    """Write the inputs of each workload, what torch makes of them, and how far from that an engine may be."""
    tensors: dict[str, torch.Tensor] = {}
    for name, feeds in workloads.items():
        tensors |= {f"{name}/in/{port}": x.contiguous() for port, x in feeds.items()}
        tensors |= {f"{name}/out/{port}": x.contiguous() for port, x in run(feeds).items()}
    written = save({name: x.clone() for name, x in tensors.items()}, {ALLOWED: repr(allowed)})
    (folder / REFERENCE).write_bytes(written)


def read_reference(folder: Path) -> dict[str, tuple[Feeds, Feeds]]:
    """Workload -> (inputs, torch's outputs); empty when the artifact carries none."""
    if not (folder / REFERENCE).exists():
        return {}
    found: dict[str, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}
    for key, x in load_file(folder / REFERENCE).items():
        workload, side, port = key.rsplit("/", 2)
        found.setdefault(workload, ({}, {}))[side == "out"][port] = x
    return dict(found)


def allowed(folder: Path, dtype: str) -> float:
    """How far from torch's outputs an engine may be; what its dtype allows where the artifact does not say."""
    if not (folder / REFERENCE).exists():
        return TOLERANCE[dtype]
    with safe_open(folder / REFERENCE, "pt") as file:
        return float((file.metadata() or {}).get(ALLOWED, TOLERANCE[dtype]))


def gap(reference: Mapping[str, tuple[Feeds, Feeds]], run: Run) -> float:
    """The largest relative difference of a runtime from torch's outputs, over all workloads."""

    def stored(expected: Feeds) -> Run:
        return lambda feeds: dict(expected)

    return max((difference(stored(expected), run, feeds) for feeds, expected in reference.values()), default=0.0)


# *** speed ***


def time_engines(
    backend: EngineBackend, folder: Path, workloads: Mapping[str, Feeds], beside: Run | None
) -> tuple[Comparison, ...]:
    """Each workload on the dense and the sparse engine in turn, and on ONNX Runtime beside them, on the CPU."""
    rows = []
    for name, feeds in workloads.items():
        times = backend.time_engines(folder, feeds)
        row = compared(name, {"dense": times["dense"], "artifact": times["sparse"]})
        if beside is not None:
            other = compare({STAND_IN: beside}, name, feeds, seconds=1.0)
            row = dataclasses.replace(row, latency=row.latency | other.latency)
        rows.append(row)
    return tuple(rows)
