"""The artifact beside the dense model, measure by measure: two bars from zero, what changed, and how sure that is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.units import human_bytes, human_count


@dataclass(frozen=True)
class Bar:
    """One value: whose, its length as a share of the longest, and in words."""

    whose: str
    share: float
    text: str


@dataclass(frozen=True)
class Measure:
    """One measure of both. change: in words; sure: the spread of that; note: unit, direction, n."""

    name: str
    note: str
    bars: tuple[Bar, ...]
    change: str
    sure: str = ""


def comparisons(report: Mapping[str, Any]) -> dict[str, list[Measure]]:
    """Accuracy, speed and size, each with what was measured; empty where nothing was."""
    return {
        "Accuracy": list(_accuracy(report)),
        "Speed": [_speed(row) for row in report["latency"]],
        "Size": [*_size(report["sizes"]), *_work(report["costs"])],
    }


def _accuracy(report: Mapping[str, Any]) -> Iterator[Measure]:
    scores = report["scores"]
    if not scores:
        return
    dense, higher = scores["dense"], scores["dense"]["higher_is_better"]
    before = (report["unquantized"] or {}).get("score")
    values = {"dense": scores["dense"], "not quantized": before, "artifact": scores["artifact"]}
    unit = "points" if higher else "%"
    allowed = "" if scores["allowed"] is None else f"; {scores['allowed']:g} {unit} allowed"
    yield Measure(
        dense["metric"],
        f"{'higher' if higher else 'lower'} is better · n = {dense['n']} {dense['unit']} · ± standard error",
        _bars({whose: (score["value"], f"{_number(score['value'])} ± {_number(score['stderr'])}")
               for whose, score in values.items() if score}),
        _change(scores["drop"], unit),
        f"± {_number(scores['stderr'])} on the same samples{allowed}",
    )  # fmt: skip


def _change(drop: Any, unit: str) -> str:
    if not _is_number(drop):
        return f"{drop or 'unknown'} {unit} worse"
    return f"{abs(drop):.2f} {unit} {'better' if drop < 0 else 'worse'}" if drop else "the same"


def _speed(row: Mapping[str, Any]) -> Measure:
    times = row["latency"]
    low, high = row["spread"]["artifact"]
    ratio = row["ratio"]["artifact"]
    values = {
        whose: (time["p50"], f"{_number(time['p50'])} ms (p90 {_number(time['p90'])})") for whose, time in times.items()
    }
    n = "/".join(dict.fromkeys(str(time["n"]) for time in times.values()))
    return Measure(
        row["workload"],
        f"latency, p50 · lower is better · n = {n} calls each, in turn",
        _bars(values),
        f"{_number(ratio)} times as fast",
        f"quartiles {_number(low)} to {_number(high)}",
    )


def _size(sizes: Mapping[str, Any]) -> Iterator[Measure]:
    files = {"dense": sizes["dense_bytes"], "artifact": sizes["artifact_bytes"]}
    yield Measure(
        "model files",
        "as written, uncompressed",
        _bars({whose: (n, human_bytes(n)) for whose, n in files.items()}),
        _share(files["artifact"], files["dense"]),
    )
    nonzero = {"dense": sizes["dense_nonzero"], "artifact": sizes["nonzero"]}
    yield Measure(
        "weights that are not zero",
        f"of {sizes['parameters']:,}",
        _bars({whose: (n, f"{n:,}") for whose, n in nonzero.items()}),
        _share(nonzero["artifact"], nonzero["dense"]),
    )


def _work(costs: Sequence[Mapping[str, Any]]) -> Iterator[Measure]:
    """What one call takes, where that has changed."""
    for name, counts in ((row["workload"], (row["dense"], row["compressed"])) for row in costs):
        dense, own = (one["flops"] for one in counts)
        if dense != own:
            bars = _bars({"dense": (dense, f"{human_count(dense)}"), "artifact": (own, human_count(own))})
            yield Measure(f"FLOPs, {name}", "of contractions, zeros multiplied like others", bars, _share(own, dense))
        dense, own = (one["parameter_bytes"] + one["activation_bytes"] for one in counts)
        if dense != own:
            bars = _bars({"dense": (dense, human_bytes(dense)), "artifact": (own, human_bytes(own))})
            yield Measure(f"memory, {name}", "weights and values held at once, counted", bars, _share(own, dense))


def _bars(values: Mapping[str, tuple[Any, str]]) -> tuple[Bar, ...]:
    most = max((value for value, _ in values.values() if _is_number(value)), default=0) or 1
    return tuple(
        Bar(whose, max(value, 0) / most if _is_number(value) else 1.0, text) for whose, (value, text) in values.items()
    )


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} % of dense" if whole else ""


def _is_number(value: Any) -> bool:
    """JSON has null for NaN and a word for infinity."""
    return isinstance(value, int | float)


def _number(value: Any) -> str:
    """Three or four figures; `unknown` and `infinite` as words."""
    if not _is_number(value):
        return str(value or "unknown")
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"
