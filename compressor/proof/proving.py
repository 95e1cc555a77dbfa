"""The proof: everything here is read from the written artifact, or measured on it beside its dense twin."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from compressor.graph import Feeds, Graph, Run
from compressor.orphans import Orphan
from compressor.pattern import NM, parse_pattern
from compressor.pipeline import Row, Shapes
from compressor.progress import Progress
from compressor.proof.latency import Comparison, compare
from compressor.proof.parity import Parity, difference, in_words, tolerance
from compressor.proof.report import Promise, Scores, SiteRecord
from compressor.sites import WeightSite
from compressor.source import Source, Stored

GREEDY_TOKENS = 24
WIDTHS = (4, 8, 16, 32)
NOT_QUANTIZED = "not quantized"


# *** sites ***


def site_records(graph: Graph, rows: Iterable[Row], stored: Mapping[str, Stored]) -> tuple[SiteRecord, ...]:
    """Each site with what was asked of it last, and what the file holds; then every weight that is no site."""
    asked: dict[str, Row] = {}
    for row in rows:
        asked[row.site] = _merged(asked[row.site], row) if row.site in asked else row
    untouched = Row("", "left", "no pass names it")
    records = [_record(site, asked.get(site.name, untouched), stored.get(site.name)) for site in graph.sites]
    orphans = [_orphan(one, asked.get(one.name, untouched), stored.get(one.name)) for one in graph.orphans]
    there = {one.name for one in (*records, *orphans)}
    gone = [_gone(row) for name, row in asked.items() if name not in there and row.shapes]
    return (*records, *orphans, *gone)


def _orphan(one: Orphan, row: Row, found: Stored | None) -> SiteRecord:
    """A weight that nothing contracts; one that is looked up may be stored as codes."""
    record = SiteRecord(one.name, "", one.shape, -1, row.status, one.reason)
    if row.status != "changed":
        return record
    if found is None:
        return dataclasses.replace(record, reason="", holds=False, where="not found in the file")
    holds = found.dtype == row.dtype and found.scale is not None and _is_positive(found.scale)
    return dataclasses.replace(record, reason="", holds=holds, where=found.where, dtype=found.dtype)


def _gone(row: Row) -> SiteRecord:
    """A site that is no part of the graph any more, with its block."""
    return SiteRecord(row.site, "", (), -1, row.status, row.reason, dense_shape=row.shapes[0] if row.shapes else None)


def _record(site: WeightSite, row: Row, found: Stored | None) -> SiteRecord:
    record = SiteRecord(
        site.name, site.op, row.shapes[1] if row.shapes else site.shape, site.axis, row.status, row.reason,
        asked=row.asked, holds=False if row.status == "changed" else None,
        where="not found in the file", relative_error=row.numbers.get("relative_error"),
        rounding_error=row.numbers.get("rounding_error"),
        dense_shape=row.shapes[0] if row.shapes else None,
    )  # fmt: skip
    if found is None:
        return record
    return dataclasses.replace(
        record,
        found=observed_pattern(found.W),
        sparsity=(found.W == 0).double().mean().item(),
        holds=_holds(site, row, found) if row.status == "changed" else None,
        where=f"{found.where}, in floats" if found.floats else found.where,
        dtype=found.dtype,
    )


def _merged(before: Row, after: Row) -> Row:
    """What two passes say of one site: what either asked for and measured; a refusal stays one."""
    if after.status == "left" or before.status == "refused":
        return before
    numbers = before.numbers | after.numbers
    return dataclasses.replace(
        after,
        asked=after.asked or before.asked,
        dtype=after.dtype or before.dtype,
        shapes=_joined(before.shapes, after.shapes),
        numbers=numbers,
    )


def _joined(before: Shapes, after: Shapes) -> Shapes:
    """From the shape before the first of two passes to the shape after the last."""
    if before is None or after is None:
        return after or before
    return before[0], after[1]


def _holds(site: WeightSite, row: Row, found: Stored) -> bool:
    """Whether the file has the pattern on the axis its operator contracts, every zero of the graph's weight, and codes
    of the type that was asked for, with scales that are positive numbers, which are multiplied as codes."""
    W, pattern = found.W, parse_pattern(row.asked) if row.asked else None
    if row.dtype and (row.dtype != found.dtype or found.scale is None or not _is_positive(found.scale)):
        return False
    if found.floats:
        return False
    if isinstance(pattern, NM) and most_nonzero(W, pattern.m) > pattern.n:
        return False
    expected = site.weight.detach().movedim(site.axis, -1)
    return expected.shape == W.shape and bool((W[expected == 0] == 0).all())


def _is_positive(scale: Tensor) -> bool:
    """Whether all are normal numbers: a runtime may take the smaller ones of half precision for zero."""
    return bool((torch.isfinite(scale) & (scale >= torch.finfo(scale.dtype).smallest_normal)).all())


def most_nonzero(W: Tensor, m: int) -> int:
    """The largest count of non-zero values in any m consecutive ones along the last axis; m + 1 when m does not fit."""
    if W.shape[-1] % m:
        return m + 1
    return int((W.reshape(-1, m) != 0).sum(1).max()) if W.numel() else 0


def observed_pattern(W: Tensor) -> str:
    """The N:M pattern that the values show along their last axis (`2:4`), or "" when every M holds M somewhere."""
    for m in WIDTHS:
        n = most_nonzero(W, m)
        if 0 < n < m:
            return f"{n}:{m}"
    return ""


def in_codes(sites: Iterable[SiteRecord], dtype: str) -> str:
    """How many weights are codes, and what all else is; "" where none are."""
    found = Counter(site.dtype for site in sites if site.dtype.startswith("int"))
    listed = ", ".join(f"{n} weight{'s' * (n != 1)} in {kind} codes" for kind, n in found.items())
    return f"{listed}; all else is {dtype}" if listed else ""


# *** parity ***


def prove_parity(source: Source, reference: Run, artifact: Run, dtype: str, unrounded: Run | None = None) -> Parity:
    """Torch against the artifact on every workload, and greedy tokens where the task generates.

    unrounded: torch without the rounding of activations, where both round them.
    """
    workloads = {name: in_dtype(feeds, dtype) for name, feeds in source.workloads().items()}
    run = cast(reference, dtype)
    allowed = tolerance(run, workloads.values(), dtype, unrounded and cast(unrounded, dtype))
    gap = max(difference(run, artifact, feeds) for feeds in workloads.values())
    expected = source.generate(run, GREEDY_TOKENS)
    found = source.generate(artifact, GREEDY_TOKENS)
    if expected is None or found is None:
        return Parity(gap, allowed, tuple(workloads))
    equal = int((expected == found).sum())
    decide = dtype == "float32" and unrounded is None
    return Parity(gap, allowed, tuple(workloads), equal == expected.numel(), expected.numel(), decide)


def cast(run: Run, dtype: str) -> Run:
    """The run, taking inputs of any floating dtype."""
    return lambda feeds: run(in_dtype(feeds, dtype))


def adapted(graph: Graph, run: Run) -> Run:
    """The run, taking the inputs of the model that was captured: caches lose the heads that the graph has lost."""
    return lambda feeds: run(graph.adapt(feeds))


def in_dtype(feeds: Feeds, dtype: str) -> Feeds:
    """The inputs, those that are floating in that dtype."""
    kind = getattr(torch, dtype)
    return {name: x.to(kind) if x.is_floating_point() else x for name, x in feeds.items()}


# *** speed ***


def time_beside_dense(
    source: Source, graph: Graph, dense: Run, artifact: Run, dtype: str, progress: Progress, floats: Run | None = None
) -> tuple[Comparison, ...]:
    """Each workload on the dense twin and on the artifact, in turn, on one thread.

    floats: the artifact without its quantization, to be timed beside them.
    """
    compressed = {"artifact": artifact} | ({NOT_QUANTIZED: floats} if floats else {})
    workloads = source.workloads()
    with progress.task("timing", total=len(workloads)) as step:
        rows = []
        for name, feeds in workloads.items():
            given = in_dtype(feeds, dtype)
            own = graph.adapt(given)  # before the clock runs
            runs = {whose: partial(_ignoring, run, own) for whose, run in compressed.items()}
            rows.append(compare({"dense": dense, **runs}, name, given))
            step()
    return tuple(rows)


def _ignoring(run: Run, own: Feeds, given: Feeds) -> dict[str, Tensor]:
    """The run on inputs of its own, whatever it is given."""
    return run(own)


# *** verdict ***


def promises(
    sites: Sequence[SiteRecord], scores: Scores | None, parity: Parity | None, allow_partial: bool
) -> tuple[Promise, ...]:
    """What the run promised, judged."""
    return tuple(
        promise
        for promise in (_coverage(sites, allow_partial), _pattern(sites), _parity(parity), _budget(scores))
        if promise is not None
    )


def _coverage(sites: Sequence[SiteRecord], allow_partial: bool) -> Promise:
    refused = [site for site in sites if site.status == "refused"]
    changed = sum(site.status == "changed" for site in sites)
    detail = f"{changed} site{'s' * (changed != 1)} changed, {len(refused)} refused"
    if refused:
        detail += f" ({refused[0].name}: {refused[0].reason}); --ignore and --allow-partial accept that"
    return Promise("every named site is changed", not refused or allow_partial, detail)


def _pattern(sites: Sequence[SiteRecord]) -> Promise | None:
    asked = [site for site in sites if site.holds is not None]
    if not asked:
        return None
    broken = [site for site in asked if not site.holds]
    detail = f"{len(asked) - len(broken)} of {len(asked)} sites, on the axis the runtime contracts"
    if broken:
        detail += f"; not {broken[0].name} ({broken[0].where}, found {broken[0].found or 'no pattern'})"
    is_only_smaller = any(site.dense_shape for site in asked) and not any(site.asked for site in asked)
    what = "the weights that are left" if is_only_smaller else "the pattern"
    what = "the codes and the pattern" if any(site.dtype.startswith("int") for site in asked) else what
    return Promise(f"the written file holds {what}", not broken, detail)


def _parity(parity: Parity | None) -> Promise:
    if parity is None:
        return Promise("the artifact computes what torch computes", False, "nothing on this machine runs it")
    detail = in_words(parity.difference, parity.tolerance)
    if parity.same_tokens is not None:
        detail += f", {parity.tokens} greedy tokens {'identical' if parity.same_tokens else 'not identical'}"
    return Promise("the artifact computes what torch computes", bool(parity), detail)


def _budget(scores: Scores | None) -> Promise | None:
    if scores is None:
        return None
    if not math.isfinite(scores.drop):
        dense, artifact = scores.dense, scores.artifact
        return Promise(
            "the score is a number", False, f"{dense.metric} {dense.value:g} dense, {artifact.value:g} artifact"
        )
    if scores.allowed is None:
        return None
    return Promise(
        "the score stays within the budget",
        scores.is_within,
        f"{scores.dense.metric} {scores.in_words} ({scores.allowed:g} {scores.unit} allowed)",
    )
