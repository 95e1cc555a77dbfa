"""The page: the verdict first, every number in it, whatever the report lacks; it loads nothing and is well formed."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.commands.building import Built
from compressor.engine import Engine
from compressor.errors import OutputError
from compressor.models.task import top1
from compressor.page import render, write_page
from compressor.page.svg import decades
from compressor.proof.costs import CostChange, Costs
from compressor.proof.exhibits import Exhibits, Sample, Texture
from compressor.proof.report import Promise, Report, Scores, SiteRecord, score_drop
from compressor.proof.roofs import Roofs
from compressor.source import Answer
from tests.compressor.test_report import report

VOID = {"meta", "input", "link", "br", "img", "wbr"}
UNMET = Promise("the score stays within the budget", False, "perplexity 9.00 % worse than dense (1 % allowed)")


class Reader(HTMLParser):
    """Text by the element it stands in, and every element with its attributes; refuses tags that do not close."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text.replace("<wbr>", ""))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("style", "script"))


def page(made: Report) -> Reader:
    return Reader(render(json.loads(made.to_json())))


def site(i: int, **changes: object) -> SiteRecord:
    made = SiteRecord(
        f"h.{i}.w.weight", "linear.default", (8, 16), 1, "changed", asked="2:4", found="2:4", sparsity=0.5, holds=True,
        where="MatMul axis 0", relative_error=0.01 * (i + 1), dtype="float32",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


# *** the verdict ***


def test_the_verdict_comes_first_then_every_promise():
    met, unmet = page(report()).text, page(report(promises=(*report().promises, UNMET))).text
    assert met.index("Passed") < met.index("Every promise is met") < met.index("every named site is changed")
    assert unmet.index("Not met") < unmet.index("1 of 2 promises is not met.") < unmet.index(UNMET.detail)


def test_each_promise_says_yes_or_no_in_words_and_not_by_colour_alone():
    found = page(report(promises=(*report().promises, UNMET)))
    assert [text for tag, text in found.texts if tag == "b"][:2] == ["yes", "no"]


# *** numbers ***


def test_accuracy_speed_and_size_stand_beside_dense_with_their_spread():
    text = page(report()).text
    assert "60.34 ± 6.03" in text  # dense
    assert "63.43 ± 3.17" in text  # artifact
    assert "5.13 % worse" in text
    assert "± 5.26 on the same samples; 1 % allowed" in text
    assert "2.00 ms (p90 3.00)" in text
    assert "2.00 times as fast quartiles 1.90 to 2.10" in text
    assert "90.0 % of dense" in text
    assert "50.0 % of dense" in text


def test_bars_are_as_long_as_their_values():
    shares = [float(style["style"].split(": ")[1]) for style in page(report()).all("i") if style.get("style")]
    assert shares[:9] == pytest.approx([60.34 / 63.43, 1, 1, 1, 0.5, 1, 0.9, 1, 0.5], abs=1e-3)


def test_what_was_not_measured_is_said_with_the_reason():
    lacking = report(scores=None, unscored="the data has no labels", latency=(), engine=None, pipeline="")
    text = page(lacking).text
    assert "Not scored: the data has no labels." in text
    assert "Not timed: no pass has made a difference to the dense model." in text
    assert "no pass, as it was" in text
    assert "Not timed: the engine does not run here." in page(report(latency=())).text


def test_a_score_that_is_no_number_is_a_word():
    one = top1([True], "images")
    text = page(report(scores=Scores("1 image", one, one, one, *score_drop(one, one), None))).text
    assert "100.00 ± unknown" in text
    worse = dataclasses.replace(one, value=math.inf)
    assert "infinite ± unknown" in page(report(scores=Scores("1", one, worse, worse, math.inf, math.nan, None))).text


# *** weights ***


def test_the_table_has_a_row_per_weight_and_no_empty_column():
    sites = (site(0), site(1, status="refused", reason="K is 6, not a multiple of 4", asked="", found="", holds=None))
    found = page(report(sites=sites))
    headings = [text for tag, text in found.texts if tag == "th"]
    assert headings == ["weight", "shape", "read by", "asked", "found", "zeros", "error", "type"]
    cells = [text for tag, text in found.texts if tag == "td"]
    assert cells[:9] == ["h.0.w", "8 × 16", "MatMul axis 0", "2:4", "2:4", "50.0 %", "1.00 %", "float32", "changed"]
    assert cells[-1] == "refused: K is 6, not a multiple of 4"


def test_columns_come_with_what_fills_them():
    quantized = site(0, dtype="int8", rounding_error=0.004, verdict="eligible", kernel="sparse gemm_2x4")
    found = page(report(sites=(quantized,)))
    assert {"rounding", "kernels"} <= {text for tag, text in found.texts if tag == "th"}
    assert {"0.40 %", "eligible · sparse gemm_2x4"} <= {text for tag, text in found.texts if tag == "td"}


def test_an_error_that_is_too_small_to_print_is_not_called_none():
    found = page(
        report(sites=(site(0, relative_error=1e-6), site(1, relative_error=0.0), site(2, relative_error=1e-4)))
    )
    assert [text for tag, text in found.texts if tag == "td" and text.endswith(" %")][1::2] == [
        "< 0.01 %", "0.00 %", "0.01 %",
    ]  # fmt: skip


def test_a_weight_that_the_file_does_not_hold_is_marked():
    found = page(report(sites=(site(0, holds=False),)))
    assert "broken: the file does not hold it" in found.text
    assert {row.get("class") for row in found.all("tr")} == {None, "broken"}


# *** pictures ***


def dots(found: Reader, which: str = "dot") -> list[dict[str, str | None]]:
    return [circle for circle in found.all("circle") if circle["class"] == which]


def test_every_error_is_a_dot_and_larger_ones_stand_higher():
    sites = tuple(site(i) for i in range(5))
    heights = [float(dot["cy"] or 0) for dot in dots(page(report(sites=sites)))]
    assert len(heights) == 5
    assert heights == sorted(heights, reverse=True)


def test_rounding_errors_are_rings():
    assert len(dots(page(report(sites=(site(0, rounding_error=0.01), site(1)))), "ring")) == 1


def test_bars_of_zeros_tell_what_was_changed_from_what_was_left():
    sites = (site(0), site(1, status="left", sparsity=0.25, asked="", holds=None), site(2, sparsity=None))
    bars = [bar for bar in page(report(sites=sites)).all("rect") if (bar["class"] or "").startswith("zeros")]
    assert [bar["class"] for bar in bars] == ["zeros changed", "zeros left"]
    tall, low = (float(bar["height"] or 0) for bar in bars)
    assert tall == pytest.approx(2 * low, rel=0.01)


def test_without_numbers_there_are_no_pictures():
    bare = SiteRecord("w", "", (2, 2), -1, "left", "not a contraction")
    assert not page(report(sites=(bare,), exhibits=Exhibits())).all("svg")
    assert not page(report(sites=(), exhibits=Exhibits())).all("svg")


@given(st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=20))
def test_every_value_lies_on_its_axis_and_every_axis_has_ticks_on_it(values):
    axis = decades(values, str)
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert len(axis.ticks) >= 2
    assert all(0 <= axis.share(tick) <= 1 for tick in axis.ticks)


@given(st.lists(st.floats(1e-9, 10), min_size=1, max_size=30))
def test_every_mark_is_inside_its_picture(errors):
    found = page(report(sites=tuple(site(i, relative_error=error) for i, error in enumerate(errors))))
    width, height = map(float, (found.all("svg")[0]["viewbox"] or "").split()[2:])
    assert all(0 <= float(dot["cx"] or -1) <= width and 0 <= float(dot["cy"] or -1) <= height for dot in dots(found))


# *** samples ***


def test_text_samples_stand_beside_each_other_and_what_differs_is_marked():
    found = page(report())
    assert "goes on: a time there was" in found.text
    assert [text for tag, text in found.texts if tag == "mark"] == ["hill there is"]
    assert "The artifact says the same as the dense model on 0 of 1." in found.text
    agreed = dataclasses.replace(report().exhibits.samples[0], artifact=Answer(" a time there is"))
    same = page(report(exhibits=Exhibits((agreed,))))
    assert not [text for tag, text in same.texts if tag == "mark"]
    assert "on 1 of 1." in same.text


def test_pictures_come_with_both_guesses_and_wrong_ones_say_so():
    picture = Sample("picture", "data:image/png;base64,AAAA", "cat", Answer("cat", 0.91), Answer("dog", 0.5))
    found = page(report(exhibits=Exhibits((picture,))))
    assert [image["src"] for image in found.all("img")] == ["data:image/png;base64,AAAA"]
    assert "cat dense cat 91 % artifact dog 50 %, wrong" in found.text


def test_a_class_of_a_text_is_right_or_wrong_too():
    labelled = Sample("text", "Fine.", "good", Answer("good", 0.9), Answer("bad", 0.6))
    assert "label: good dense good 90 % artifact bad 60 %, wrong" in page(report(exhibits=Exhibits((labelled,)))).text


# *** the texture and the roofs ***


def test_the_texture_has_a_cell_for_each_weight_that_is_kept():
    found = page(report())
    cells = [path for path in found.all("path") if path["class"] in ("plus", "minus")]
    assert sum((path["d"] or "").count("M") for path in cells) == 4  # of "1..b" and "..9i"
    assert "in groups of 4" in found.text
    assert "zero (50 %)" in found.text


def test_the_roofline_tells_which_share_of_the_roof_each_workload_reaches():
    found = page(report())
    workload = report().costs[0]
    flops, n_bytes = workload.compressed.flops, report().sizes.artifact_bytes + 300
    share = 100 * (flops / 1e-3) / min(2e9, 1e9 * flops / n_bytes)
    assert f"Reached of the roof: prefill {share:.0f} %." in found.text
    assert [circle["class"] for circle in found.all("circle")] == ["point dense", "point artifact"]


def test_a_point_beyond_the_roof_is_explained():
    slow = dataclasses.replace(report().exhibits, roofs=Roofs(10.0, 10.0))
    assert "More than 100 %:" in page(report(exhibits=slow)).text
    fast = dataclasses.replace(report().exhibits, roofs=Roofs(1e15, 1e15))
    assert "More than 100 %:" not in page(report(exhibits=fast)).text


def test_work_that_has_become_less_stands_beside_dense():
    before, after = Costs(2000, 32, 128, 64), Costs(1000, 32, 128, 32)
    text = page(report(costs=(CostChange("prefill", before, after),))).text
    assert "FLOPs, prefill" in text
    assert "2.0 k 1.0 k 50.0 % of dense" in text
    assert "192 bytes 160 bytes 83.3 % of dense" in text
    assert "FLOPs, prefill" not in page(report(costs=(CostChange("prefill", before, before),))).text


# *** any report ***


@pytest.mark.parametrize("n", [1, 500])
def test_one_weight_or_five_hundred_make_a_page(n):
    found = page(report(sites=tuple(site(i % 90, name=f"{'layer.' * 30}{i}.weight") for i in range(n))))
    assert len(found.all("tr")) == n + 1


def test_the_page_loads_nothing_and_needs_no_script_to_be_read():
    found = page(report())
    assert not found.all("link")
    sources = [source for _, attributes in found.elements for key, source in attributes.items() if key == "src"]
    assert all((source or "").startswith("data:") for source in sources)
    assert not re.search(r"https?://|@import|url\(", render(json.loads(report().to_json())))
    [search] = found.all("input")
    assert "hidden" in search


def test_nothing_that_a_report_says_becomes_markup():
    evil = "<script>alert(1)</script>&amp;"
    shown = Exhibits((Sample("text", evil, evil, Answer(evil), Answer(f"no {evil}")),), Texture(evil, "2:4", ("1...",)))
    promise = Promise(evil, False, evil)
    sites = (site(0, name=evil, reason=evil, relative_error=0.1), site(1, where=evil))
    found = page(
        report(model=evil, notes=(evil,), promises=(promise,), sites=sites, recipe=evil, gain=evil, exhibits=shown)
    )
    assert len(found.all("script")) == 1
    assert found.text.count(evil) >= 12


# *** files ***


def test_the_page_is_written_beside_the_report_or_where_asked(tmp_path):
    report().write(tmp_path / "report.json")
    made = write_page(tmp_path)
    assert (made.path, made.is_met, made.model) == (str(tmp_path / "report.html"), True, "tiny")
    assert (tmp_path / "report.html").stat().st_size == made.bytes
    write_page(tmp_path, tmp_path / "other.html")
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "report.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "report.html", "report.json"]


def test_an_engine_that_was_built_since_is_in_the_page(tmp_path):
    missing = Promise("the engine is built and has run", False, "no device; on a GPU host: compress build small")
    report(promises=(*report().promises, missing), latency=()).write(tmp_path / "report.json")
    assert not write_page(tmp_path).is_met
    done = Promise(missing.name, True, "TensorRT 11.4: eligible 1, chosen 1")
    built = Built("small", Engine("TensorRT 11.4", True, True), (done,), report().latency)
    (tmp_path / "engine.json").write_text(built.to_json())
    assert write_page(tmp_path).is_met
    text = Reader((tmp_path / "report.html").read_text()).text
    assert "TensorRT 11.4: eligible 1, chosen 1" in text
    assert "compress build small" not in text
    assert "timed on TensorRT 11.4, GPU" in text
    assert "2.00 times as fast" in text


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "No such file"), ("{", "Expecting property name"), ("[]", "schema None"), ('{"schema": 1}', "schema 1")],
)
def test_a_folder_without_a_report_of_ours_is_refused(tmp_path, content, found):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(OutputError) as refused:
        write_page(tmp_path)
    assert found in refused.value.found
    assert "the folder of an artifact" in refused.value.hint


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    report().write(tmp_path / "report.json")
    with pytest.raises(OutputError, match="cannot write"):
        write_page(tmp_path, tmp_path / "missing" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
