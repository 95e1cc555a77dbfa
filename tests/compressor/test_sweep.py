"""A sweep: each point made once, found again, resumed after a kill, and shown as table, JSON and page."""

import functools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from compressor import driver
from compressor.cache import Cache
from compressor.commands.sweeping import run
from compressor.commands.sweeping.pareto import COSTS, front
from compressor.commands.sweeping.plot import legend, log_ticks, picture, round_ticks
from compressor.commands.sweeping.point import Point, Speed, timed_beside
from compressor.commands.sweeping.run import Sweep, _usual, sweep
from compressor.commands.sweeping.table import show_sweep
from compressor.errors import OutputError, RecipeError
from compressor.page.svg import HALF, Axis, Frame
from compressor.proof import latency, proving
from compressor.proof.report import Report, Sizes
from compressor.recipe import Recipe

NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    layers = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)
    return nn.Sequential(*layers), torch.randn(3, 32)
"""
PLAIN: dict[str, Any] = {"method": "magnitude", "refit": 0}
SIZES = Sizes(400, 400, 100, 100, 100)


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", 10**6)


# *** a sweep of a real model, made once ***


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> tuple[Sweep, Path, Cache]:
    """A small net at 0.5 and 1:4: what came of it, the working directory, and the cache."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "net.py").write_text(NET)
    cache = Cache(folder / "cache", 10**6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(proving, "compare", functools.partial(latency.compare, seconds=0.01, rounds=(4, 4)))
        return sweep("net.py:make", sparsity=["0.5", "1:4"], cache=cache, **PLAIN), folder, cache


def test_a_second_run_makes_nothing_and_finds_the_same(real, monkeypatch):
    first, folder, cache = real
    monkeypatch.chdir(folder)
    monkeypatch.setattr(driver, "export", None)  # to call it is an error
    again = sweep("net.py:make", sparsity=["0.5", "1:4"], cache=cache, output="again", **PLAIN)
    assert (first.cached, again.cached) == (0, 3)
    assert (again.dense, again.points) == (first.dense, first.points)


def test_a_point_says_what_its_artifact_holds(real):
    dense, (half, quarter) = real[0].dense, real[0].points
    assert dense.parameters == 32 * 64 + 64 * 64 + 64 * 8 + 64 + 64 + 8
    assert dense.nonzero == dense.parameters
    pruned = 32 * 64 + 64 * 64  # the head stays dense
    assert half.nonzero == dense.parameters - pruned // 2
    assert quarter.nonzero == dense.parameters - pruned * 3 // 4
    assert quarter.zipped < half.zipped < dense.zipped
    assert half.bytes == dense.bytes
    assert [speed.workload for speed in half.speeds] == ["example"]
    assert (half.unmet, half.failed) == ((), "")


def test_what_is_written_reads_back(real):
    found, folder, _ = real
    written = json.loads((folder / "make-sweep/sweep.json").read_text())
    assert written["passed"] is True
    assert [point["varied"] for point in written["points"]] == [{"sparsity": "0.5"}, {"sparsity": "1:4"}]
    for name, point in (("0.5", found.points[0]), ("1to4", found.points[1]), ("dense", found.dense)):
        assert str(Recipe.read(folder / f"make-sweep/recipes/{name}.yaml")) == point.recipe


class Balanced(HTMLParser):
    """Whether every tag that opens is closed, in order."""

    VOID = ("meta", "br", "wbr")

    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody_for_anything(real):
    text = (real[1] / "make-sweep/sweep.html").read_text()
    checker = Balanced()
    checker.feed(text)
    assert checker.open == []
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    assert "1:4" in text


# *** which points are made ***


@pytest.fixture
def made(monkeypatch, tmp_path) -> list[str]:
    """The pattern of each artifact that is made, in order, "" for the dense one; the artifacts are empty."""
    patterns: list[str] = []

    def export(model, recipe, output, **options):
        pattern = recipe.passes[0].pattern if recipe.passes else ""
        patterns.append(pattern)
        if pattern == "3:7":
            raise RecipeError("no site can take 3:7")
        if pattern == "1:8":
            raise KeyboardInterrupt
        (output).mkdir()
        return Report(
            "net", "module", "a net", str(recipe), "", "ort", "float32", "", "", (), (), None, "", None, (), SIZES
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "export", export)
    monkeypatch.setattr(driver, "open_source", lambda model, recipe: SimpleNamespace(lower=lambda: recipe.model))
    monkeypatch.setattr(run, "model_digest", lambda source, graph: graph)
    return patterns


def test_a_larger_grid_makes_only_what_is_new(cache, made):
    sweep("net", sparsity="0.5", cache=cache, **PLAIN)
    assert made == ["", "0.5"]
    made.clear()
    found = sweep("net", sparsity="0.25,0.5,1:4", cache=cache, **PLAIN)
    assert made == ["0.25", "1:4"]
    assert [point.varied["sparsity"] for point in found.points] == ["0.25", "0.5", "1:4"]


def test_another_model_shares_nothing(cache, made):
    sweep("net", sparsity="0.5", cache=cache, **PLAIN)
    made.clear()
    sweep("other", sparsity="0.5", cache=cache, **PLAIN)
    assert made == ["", "0.5"]


def test_a_killed_sweep_goes_on_where_it_was(cache, made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep("net", sparsity="0.5,1:8", cache=cache, **PLAIN)
    assert made == ["", "0.5", "1:8"]
    assert not (tmp_path / "net-sweep").exists()
    made.clear()
    found = sweep("net", sparsity="0.5,1:4", cache=cache, **PLAIN)
    assert (made, found.cached) == (["1:4"], 2)


def test_without_a_cache_every_run_makes_every_point(made):
    for _ in range(2):
        sweep("net", sparsity="0.5", **PLAIN)
    assert made == ["", "0.5", "", "0.5"]


def test_a_point_that_cannot_be_made_says_why_and_the_others_are_made(cache, made):
    found = sweep("net", sparsity="3:7,0.5", cache=cache, output="out", **PLAIN)
    assert not found
    bad, good = found.points
    assert (bad.failed, good.failed) == ("no site can take 3:7", "")
    assert "no site can take 3:7" in Path("out/sweep.html").read_text()
    made.clear()
    sweep("net", sparsity="3:7,0.5", cache=cache, output="out", **PLAIN)
    assert made == ["3:7"]  # what failed is tried again


def test_a_sweep_replaces_a_sweep_and_nothing_else(cache, made):
    sweep("net", sparsity="0.5", cache=cache, output="out", **PLAIN)
    sweep("net", sparsity="2:4", cache=cache, output="out", **PLAIN)
    assert sorted(path.name for path in Path("out/recipes").iterdir()) == ["2to4.yaml", "dense.yaml"]
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="mine already exists"):
        sweep("net", sparsity="0.5", cache=cache, output="mine", **PLAIN)
    assert Path("mine/thesis.txt").read_text() == "years of work"


def test_an_option_nobody_knows_is_refused_before_anything_is_made(made):
    with pytest.raises(RecipeError, match="unknown option of a sweep 'sparsty'") as caught:
        sweep("net", sparsty="0.5")
    assert caught.value.hint == "sparsity"
    with pytest.raises(RecipeError, match="unknown method 'wonda'"):
        sweep("net", sparsity="0.5", method="wanda,wonda")
    assert made == []


# *** which are best ***


def point(name: str, value: float, nonzero: int, ratio: float = 1.0, higher: bool = True) -> Point:
    speed = Speed("batch of 1", 1.0, 1.0, 10, 1.0, 1.0, ratio, ratio, ratio)
    metric = "top-1 (%)" if higher else "perplexity"
    return Point(
        {"sparsity": name, "method": "wanda"}, "export", metric, higher, value, 0.5, 100,
        speeds=(speed,), zipped=nonzero, parameters=100, nonzero=nonzero,
    )  # fmt: skip


def test_the_front_holds_what_no_other_point_beats():
    points = [point("a", 90, 50), point("b", 80, 20), point("c", 79, 30), point("d", 85, 50), point("e", 91, 100)]
    assert [one.name[0] for one in front(points, COSTS["non-zero weights"])] == ["b", "a", "e"]


def test_where_less_is_better_the_front_turns_round():
    points = [point("a", 20, 50, higher=False), point("b", 40, 20, higher=False), point("c", 50, 30, higher=False)]
    assert [one.name[0] for one in front(points, COSTS["non-zero weights"])] == ["b", "a"]


def test_equals_are_both_on_the_front_and_failures_are_not():
    points = [point("a", 90, 50), point("b", 90, 50), Point({"sparsity": "c"}, "export", failed="no")]
    assert [one.name[0] for one in front(points, COSTS["non-zero weights"])] == ["a", "b"]


def test_tokens_per_second_are_at_the_pace_that_the_machine_had_with_the_dense_model():
    def timed(dense_ms: float, ratio: float) -> Point:
        speed = Speed("decode at 128", dense_ms / ratio, 1.0, 10, dense_ms, 1.0, ratio, ratio, ratio)
        return Point({"sparsity": str(ratio)}, "export", speeds=(speed,))

    points = [timed(80.0, 1.1), timed(10.0, 1.2), timed(20.0, 2.0)]  # the machine was busy with the first of them
    usual = _usual(Point({}, "export"), points)
    assert usual is points[2]
    dense = Point({}, "export", speeds=timed_beside(usual))
    assert dense.tokens_per_second == pytest.approx(50)
    assert [one.rate(dense) for one in (dense, *points)] == pytest.approx([50, 55, 60, 100])
    assert Point({}, "export").rate(dense) is None


# *** how it looks ***


def test_a_label_at_the_right_edge_is_not_cut():
    frame = Frame(Axis(0, 1, [0.0, 0.5, 1.0], lambda x: f"{x:.0%} of it"), Axis(0, 1, [], str))
    placed = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="183"', frame.draw("", "", []))]
    assert placed == pytest.approx([48, 200, 360 - HALF * len("100% of it")])


def test_ticks_are_round_numbers_between_the_ends():
    assert round_ticks(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert round_ticks(-0.3, 1.1) == pytest.approx([0, 0.5, 1.0])
    assert log_ticks(1.0, 100.0) == [1, 2, 5, 10, 20, 50, 100]
    assert log_ticks(1.0, 1e8) == [10.0**power for power in range(9)]


def test_a_picture_has_a_mark_for_each_point_and_a_line_through_the_front():
    dense = Point({}, "export", "top-1 (%)", True, 95.0, 0.5, 100, parameters=100, nonzero=100)
    points = [point("0.5", 90, 50), point("0.7", 80, 30), Point({"sparsity": "c"}, "x", failed="no")]
    svg = picture(points, dense, COSTS["non-zero weights"], "a < b", str)
    assert svg.count('class="mark') == 3
    assert "<title>0.5 wanda: top-1 (%) 90</title>" in svg
    assert "a &lt; b" in svg
    [corners] = re.findall(r'class="front" points="([^"]+)"', svg)
    assert len(corners.split()) == 3
    assert picture(points[2:], dense, COSTS["non-zero weights"], "", str) == ""


def test_what_is_drawn_alike_has_one_entry_in_the_legend():
    points = [point("0.5", 90, 50), point("0.7", 80, 30), Point({"sparsity": "0.5", "recover": "none"}, "x")]
    assert [name for _, name in legend(points)] == ["wanda", "no recover", "dense"]


def test_the_table_fits_in_80_columns(capsys):
    dense = Point({}, "export", "perplexity", False, 20.6, 0.7, 100, speeds=point("x", 1, 1).speeds, parameters=100,
                  nonzero=100, zipped=10**6, facts={"origin": "GPT2LMHeadModel from gpt2"})  # fmt: skip
    points = (
        point("0.5", 12345.6, 50, higher=False),
        Point({"sparsity": "3:7", "method": "wanda"}, "", failed="no site " * 20),
    )
    show_sweep(Sweep("gpt2", dense, points, {}, "gpt2-sweep", 1, 61.0), Console(width=80))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "3:7 wanda: no site" in out
    assert "1 of 3 points from the cache" in out
