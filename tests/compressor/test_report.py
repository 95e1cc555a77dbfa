"""A report answers `bool()`, and its JSON keeps its fields and holds no NaN."""

import dataclasses
import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.engine import Engine, Layer
from compressor.models.task import perplexity, top1
from compressor.proof.costs import CostChange, Costs
from compressor.proof.exhibits import Exhibits, Sample, Texture
from compressor.proof.latency import Comparison, Latency
from compressor.proof.parity import Parity
from compressor.proof.report import Promise, Report, Scores, SiteRecord, Sizes, Unquantized, as_json, score_drop
from compressor.proof.roofs import Roofs
from compressor.source import Answer

NAN = math.nan


def report(**changes: object) -> Report:
    dense, worse = perplexity([4.0, 4.2], "windows"), perplexity([4.1, 4.2], "windows")
    made = Report(
        model="tiny",
        task="text-generation",
        origin="made up",
        recipe="export{model=tiny} | sparsify{pattern=2:4}",
        pipeline="sparsify{pattern=2:4}",
        backend="onnxruntime 1.32.0",
        dtype="float32",
        gain="none",
        calibration="8 samples",
        promises=(Promise("every named site is changed", True, "2 sites changed, 0 refused"),),
        sites=(SiteRecord("w", "linear.default", (4, 8), 1, "changed", asked="2:4", found="2:4", holds=True),),
        scores=Scores("2 windows", dense, worse, worse, *score_drop(dense, worse), 1.0),
        unscored="",
        parity=Parity(1e-7, 1e-4, ("prefill",), True, 72),
        latency=(
            Comparison(
                "prefill",
                {"dense": Latency(2.0, 3.0, 9), "artifact": Latency(1.0, 2.0, 9)},
                {"dense": 1.0, "artifact": 2.0},
                {"dense": (1.0, 1.0), "artifact": (1.9, 2.1)},
            ),
        ),
        sizes=Sizes(100, 90, 32, 32, 16),
        output="tiny-onnxruntime",
        engine=Engine("TensorRT 11.4", True, eligible=1, chosen=0, layers=(Layer("linear", "gemm", False, "w"),)),
        costs=(CostChange("prefill", Costs(1000, 32, 128, 64), Costs(500, 16, 64, 64)),),
        exhibits=Exhibits(
            (Sample("text", "Once upon", " a time there was", Answer(" a time there is"), Answer(" a hill there is")),),
            Texture("w", "2:4", ("1..b", "..9i")),
            Roofs(2e9, 1e9),
            {"prefill": 300},
        ),
        unquantized=Unquantized(0.1, worse, 0.0, 0.0),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


# *** the verdict ***


def test_a_report_is_true_when_every_promise_is_met():
    assert report()
    assert not report(promises=(Promise("a", True, ""), Promise("b", False, "")))


# *** JSON ***


def keys(value: object) -> object:
    """The names in a JSON value; of a list, those of its first item."""
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value else None


SCORE = dict.fromkeys(["metric", "value", "n", "unit", "stderr", "higher_is_better", "per_sample", "loss"]) | {
    "per_sample": [None]
}
ANSWER = dict.fromkeys(["text", "share"])
GOLDEN = {
    **dict.fromkeys(["schema", "passed", "model", "task", "origin", "recipe", "pipeline", "backend", "dtype", "gain"]),
    "calibration": None,
    "promises": [dict.fromkeys(["name", "met", "detail"])],
    "sites": [
        dict.fromkeys(
            ["name", "op", "shape", "axis", "status", "reason", "asked", "found", "sparsity", "holds", "where"]
            + ["relative_error", "verdict", "kernel", "dtype", "rounding_error", "dense_shape"]
        )
        | {"shape": [None]}
    ],
    "scores": {
        "samples": None,
        **dict.fromkeys(["dense", "compressed", "artifact"], SCORE),
        **dict.fromkeys(["drop", "stderr", "allowed"]),
    },
    "unscored": None,
    "parity": dict.fromkeys(["difference", "tolerance", "workloads", "same_tokens", "tokens", "tokens_decide"])
    | {"workloads": [None]},
    "latency": [
        {
            "workload": None,
            "latency": dict.fromkeys(["dense", "artifact"], dict.fromkeys(["p50", "p90", "n"])),
            "ratio": {"dense": None, "artifact": None},
            "spread": {"dense": [None], "artifact": [None]},
        }
    ],
    "sizes": dict.fromkeys(["dense_bytes", "artifact_bytes", "parameters", "dense_nonzero", "nonzero"]),
    "seconds": {},
    "environment": {},
    "output": None,
    "engine": dict.fromkeys(
        ["runtime", "is_built", "runs_here", "why", "command", "seconds", "bytes", "eligible", "chosen"]
    )
    | {"layers": [dict.fromkeys(["name", "tactic", "is_sparse", "site"])]},
    "ran_in": None,
    "timed_on": None,
    "notes": None,
    "costs": [
        {
            "workload": None,
            **dict.fromkeys(
                ["dense", "compressed"],
                dict.fromkeys(["flops", "parameters", "parameter_bytes", "activation_bytes"]),
            ),
        }
    ],
    "exhibits": {
        "samples": [{**dict.fromkeys(["kind", "question", "wanted"]), **dict.fromkeys(["dense", "artifact"], ANSWER)}],
        "texture": {**dict.fromkeys(["site", "pattern"]), "rows": [None]},
        "roofs": dict.fromkeys(["flops", "bandwidth"]),
        "traffic": {"prefill": None},
    },
    "unquantized": {**dict.fromkeys(["difference", "drop", "stderr"]), "score": SCORE},
}


def test_the_fields_of_the_json_are_these_and_a_change_to_them_is_a_change_of_schema():
    loaded = json.loads(report().to_json())
    assert loaded["schema"] == 5
    assert keys(loaded) == GOLDEN


def test_the_json_says_whether_it_passed():
    assert json.loads(report().to_json())["passed"] is True
    assert json.loads(report(promises=(Promise("a", False, ""),)).to_json())["passed"] is False


def strict(text: str) -> object:
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_never_holds_nan_or_infinity():
    one = top1([True], "images")  # the standard error of one sample is unknown
    scores = Scores("1 image", one, one, one, *score_drop(one, one), None)
    loaded = strict(report(scores=scores, parity=Parity(math.inf, 1e-4, ())).to_json())
    assert loaded["scores"]["dense"]["stderr"] is None  # type: ignore[index]
    assert loaded["scores"]["stderr"] is None  # type: ignore[index]
    assert loaded["parity"]["difference"] == "infinite"  # type: ignore[index]


@given(st.recursive(st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_anything_becomes_json_that_every_reader_reads(value):
    @dataclasses.dataclass
    class Holder:
        value: object

    assert set(strict(as_json(Holder(value)))) == {"schema", "value"}  # type: ignore[call-overload]


def test_what_is_written_is_what_is_printed(tmp_path):
    report().write(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == report().to_json()


def test_names_outside_ascii_stay_readable():
    assert "modèle-漢" in report(model="modèle-漢").to_json()


# *** the drop of a score ***

LOSSES = st.lists(st.tuples(st.floats(0, 12), st.floats(0, 12)), min_size=2, max_size=20)


@given(LOSSES)
def test_the_drop_of_a_perplexity_is_the_percent_by_which_it_grew(pairs):
    dense, artifact = (perplexity(list(losses), "windows") for losses in zip(*pairs, strict=True))
    drop, _ = score_drop(dense, artifact)
    assert drop == pytest.approx(100 * (artifact.value / dense.value - 1), rel=1e-6, abs=1e-6)


@given(LOSSES)
def test_its_standard_error_is_that_of_the_paired_differences(pairs):
    dense, artifact = (perplexity(list(losses), "windows") for losses in zip(*pairs, strict=True))
    drop, error = score_drop(dense, artifact)
    of_the_mean = statistics.stdev([b - a for a, b in pairs]) / math.sqrt(len(pairs))
    assert error == pytest.approx((100 + drop) * of_the_mean, rel=1e-6, abs=1e-9)


def test_samples_that_fall_alike_leave_no_error_though_they_differ_among_themselves():
    dense, artifact = perplexity([1.0, 5.0, 9.0], "windows"), perplexity([1.1, 5.1, 9.1], "windows")
    drop, error = score_drop(dense, artifact)
    assert drop == pytest.approx(100 * (math.exp(0.1) - 1))
    assert error == pytest.approx(0, abs=1e-9)


def test_the_drop_of_top1_is_in_points_and_positive_when_worse():
    dense, artifact = top1([True, True, True, False], "images"), top1([True, False, True, False], "images")
    drop, error = score_drop(dense, artifact)
    assert drop == pytest.approx(25)
    assert error == pytest.approx(100 * statistics.stdev([0, -1, 0, 0]) / 2)


def test_scores_of_different_samples_are_not_compared():
    with pytest.raises(ValueError, match="shorter"):
        score_drop(perplexity([1.0, 2.0], "windows"), perplexity([1.0], "windows"))


def test_a_score_that_is_not_a_number_is_no_better_and_within_no_budget():
    dense, artifact = perplexity([1.0, 2.0], "windows"), perplexity([NAN, 2.0], "windows")
    drop, _ = score_drop(dense, artifact)
    assert not Scores("", dense, artifact, artifact, drop, 0.0, 5.0).is_within


@pytest.mark.parametrize(("drop", "allowed", "within"), [(1.0, 1.0, True), (1.01, 1.0, False), (99.0, None, True)])
def test_a_drop_is_within_what_is_allowed(drop, allowed, within):
    one = perplexity([1.0, 2.0], "windows")
    assert Scores("", one, one, one, drop, 0.0, allowed).is_within is within
