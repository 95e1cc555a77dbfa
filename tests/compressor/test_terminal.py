"""What a person reads: the verdict first, no line beyond 80 columns, no colour where none is wanted."""

import dataclasses
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from compressor.cli.listing import Names
from compressor.cli.sites import site_table
from compressor.cli.terminal import show_inspection, show_names, show_plan, show_report
from compressor.commands.inspection import inspect
from compressor.commands.planning import Cost, Plan
from compressor.layout import folded
from compressor.proof.costs import CostChange, Costs
from compressor.proof.latency import Comparison, Latency
from compressor.proof.report import Promise, Report, SiteRecord
from compressor.units import human_bytes, human_seconds
from tests.compressor.test_report import report
from tests.compressor.tiny import normal


def shown(show, *args: object, width: int = 80, color: bool = False) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        highlight=False,
        force_terminal=color,
        color_system="standard" if color else None,
    )
    show(*args[:1], console, *args[1:])
    return console.file.getvalue()  # type: ignore[attr-defined]


def long_names() -> tuple[SiteRecord, ...]:
    return tuple(
        SiteRecord(
            f"model.text_model.encoder.layers.{i}.self_attention.query_key_value_projection.weight",
            "linear.default", (4096, 11008), 1, "changed", asked="2:4", found="2:4", sparsity=0.5, holds=True,
            relative_error=0.0123 * i,
        )
        for i in range(1, 13)
    )  # fmt: skip


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("made", [report(), report(sites=long_names())], ids=["short", "long"])
def test_no_line_is_longer_than_80_columns(made, verbose):
    for line in shown(show_report, made, verbose).splitlines():
        assert len(line) <= 80, line


def test_the_trained_model_s_report_fits_too(resnet):
    text = shown(show_report, resnet[1])
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("PASSED  tiny-resnet -> resnet/  onnxruntime")
    assert "top-1 (%)" in text
    assert re.search(r"scored on 64 images from .*test\.parquet", text)


def test_an_inspection_fits_and_tells_the_share_of_zeros(resnet):
    text = shown(show_inspection, inspect(resnet[0]))
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"\d+,\d+ weights, 4\d\.\d% of them zero", text)


def test_the_verdict_comes_first_with_what_was_not_met():
    made = report(promises=(Promise("a", True, "fine"), Promise("b", False, "3 of 4")))
    lines = [line.rstrip() for line in shown(show_report, made).splitlines()]
    assert lines[0].startswith("NOT MET  tiny -> tiny-onnxruntime/")
    assert lines[1:3] == ["  yes a: fine", "   NO b: 3 of 4"]


def test_like_weights_share_a_row_unless_asked_for_each():
    made = report(sites=long_names())
    assert "layers.*.self_attention" in shown(show_report, made, width=120)
    assert "(12)" in shown(show_report, made, width=120)
    assert "layers.7.self_attention" in shown(show_report, made, True, width=120)


def test_what_differs_does_not_share_a_row():
    first, second, *_ = long_names()
    refused = dataclasses.replace(second, status="refused", reason="no", holds=None)
    text = shown(show_report, report(sites=(first, refused)), width=120)
    assert "layers.1.self" in text
    assert "layers.2.self" in text
    assert "refused: model.text_model" in text


@pytest.mark.parametrize(("drop", "line"), [(2.78, "2.78 % worse than dense"), (-1.0, "1.00 % better than dense")])
def test_the_drop_is_said_in_words(drop, line):
    scores = dataclasses.replace(report().scores, drop=drop, stderr=0.15)  # type: ignore[type-var]
    assert f"{line} (standard error 0.15, 1 % allowed)" in shown(show_report, report(scores=scores))


def test_the_model_before_it_was_quantized_stands_beside_the_artifact():
    text = shown(show_report, report())
    assert re.search(r"not quantized, in torch +63.43", text)
    assert "0.00 % worse than before it was quantized (standard error 0.00; outputs 1.0e-01 off)" in " ".join(
        text.split()
    )
    assert "quantized" not in shown(show_report, report(unquantized=None))


def test_what_else_was_timed_has_a_column_with_its_title():
    one = Latency(12.34, 13.2, 200)
    names = ("dense", "artifact", "not quantized")
    row = Comparison("decode at 128", dict.fromkeys(names, one), {"artifact": 1.0}, {"artifact": (0.9, 1.1)})
    text = shown(show_report, report(latency=(row,)))
    assert re.search(r"n +not quantized\n", text)
    assert text.count("12.34 (13.20)") == 3


def test_a_drop_that_is_no_number_is_not_called_better():
    scores = dataclasses.replace(report().scores, drop=float("nan"))  # type: ignore[type-var]
    assert "better" not in shown(show_report, report(scores=scores))


def test_what_was_not_scored_says_why():
    text = shown(show_report, report(scores=None, unscored="the data has no labels"))
    assert "Not scored: the data has no labels" in text


def test_names_with_brackets_are_no_markup():
    made = report(model="[bold]odd[/bold]", origin="[red]x")
    assert "[bold]odd[/bold]" in shown(show_report, made)


def test_colour_is_used_in_a_terminal_and_nowhere_else():
    assert "\x1b[" in shown(show_report, report(), color=True)
    assert "\x1b[" not in shown(show_report, report())


def a_plan(sites: tuple[SiteRecord, ...]) -> Plan:
    return Plan(
        "tiny", "made up", "backend onnxruntime, float32 | sparsify{pattern=2:4}", "onnxruntime", sites,
        Cost(78.1e6, 3.2), "up to 128 samples", "128 windows", "nothing",
    )  # fmt: skip


def test_a_plan_fits_and_says_what_it_takes():
    sites = tuple(dataclasses.replace(site, holds=None, found="", sparsity=None) for site in long_names())
    text = shown(show_plan, a_plan(sites))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("12 of 12 weights, 100% of their parameters", "about 78.1 MB", "about 3 s", "up to 128 samples"):
        assert part in text


def test_a_plan_for_nothing_is_shown_too():
    plan = dataclasses.replace(a_plan(()), cost=None)
    assert "0 of 0 weights" in shown(show_plan, plan)


def test_names_are_listed_under_their_kind():
    names = Names({"tiny": "a model " * 20}, {"gone": "nothing"}, {}, {"gone": {"--gone": "All of it. [off]"}})
    text = shown(show_names, names)
    assert text.startswith("models\n  tiny  a model")
    assert max(map(len, text.splitlines())) <= 80
    assert "options" not in text
    assert "options of gone\n  --gone  All of it. [off]" in shown(show_names, names, True)


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (78.1e6, "78.1 MB"), (5e12, "5000.0 GB")]
)
def test_bytes(n, text):
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2.0 h")]
)
def test_seconds(seconds, text):
    assert human_seconds(seconds) == text


def test_a_report_without_anything_to_show_is_shown():
    made: Report = report(sites=(), latency=(), scores=None, gain="")
    assert shown(show_report, made).startswith("PASSED")


def test_costs_are_shown_where_they_have_changed():
    text = shown(show_report, report())
    assert re.search(r"FLOPs, prefill +1.0 k +500 +50%\n", text)
    assert re.search(r"memory, prefill +192 bytes +128 bytes +67%\n", text)
    same = CostChange("prefill", Costs(1000, 32, 128, 64), Costs(1000, 32, 128, 64))
    assert "FLOPs" not in shown(show_report, report(costs=(same,)))


def test_what_a_model_takes_is_shown_when_it_is_inspected():
    text = shown(show_inspection, inspect((nn.Linear(8, 4), normal(2, 8))))
    assert "example: 128 FLOPs, at most 144 bytes of weights, 96 bytes of values at once\n" in text


# *** long names ***


def test_a_name_goes_on_after_a_dot_or_a_slash():
    assert folded("transformer.h.*.mlp.c_fc (4)", 20) == ["transformer.h.*.mlp.", "  c_fc (4)"]
    assert folded("models/gpt2/model.onnx", 14) == ["models/gpt2/", "  model.onnx"]
    assert folded("short", 3) == ["short"]


@pytest.mark.parametrize("name", ["wte", "h.0.weight", "..", "a/b.c/", "no dots here"])
def test_a_name_that_fits_is_left_alone(name):
    assert folded(name, len(name)) == [name]


@given(st.text(alphabet="ab./* ", min_size=1), st.integers(min_value=1, max_value=20))
def test_folding_loses_nothing(name, width):
    assert "".join(folded(name, width)).replace(" ", "") == name.replace(" ", "")


def test_no_name_in_a_table_breaks_inside_a_word():
    text = shown(show_report, report(sites=long_names()))
    assert "query_key_value_projection" in text
    assert "\nmodel.text_model." in text


def test_names_that_figures_leave_no_room_have_lines_of_their_own():
    sites = tuple(
        SiteRecord(
            f"transformer.h.{i}.attn.c_attn.weight", "mm", (128, 288), 0, "changed", sparsity=0.02 * i, holds=True,
            relative_error=0.004 * i, dtype="int8", rounding_error=0.0001 * i, dense_shape=(128, 384),
        )
        for i in (1, 2)
    )  # fmt: skip

    def lines(width: int) -> list[str]:
        text = shown(lambda made, console: console.print(site_table(made, False)), sites, width=width)
        return [line.rstrip() for line in text.splitlines()]

    name = "transformer.h.*.attn.c_attn (2)"
    figures = "  128x288  128x384     0  smaller yes  2%-4%  0.4%-0.8%  int8  0.01%-0.02%"
    title, titles, *rows = lines(80)
    assert (title, rows) == ("weight", [name, figures])
    assert titles.split() == ["shape", "was", "axis", "pattern", "zeros", "error", "type", "rounding"]
    assert lines(120)[1:] == [f"{name}{figures}"]
