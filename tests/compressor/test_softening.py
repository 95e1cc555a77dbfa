"""Sites spared by quantization until a budget holds, on a model one of whose layers feels few bits most."""

import pytest
import torch
from torch import nn

import compressor
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.passes.quantize import Quantize
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.softening import Softened, soften
from tests.compressor.tiny import graph_of, normal


class Branches(nn.Module):
    """Three branches whose sum is the output; what the second makes counts most, and the first least."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(32, 8) for _ in range(3))

    def forward(self, x):
        return sum(scale * branch(x) for scale, branch in zip((0.1, 10.0, 1.0), self.branches, strict=True))


class Trial:
    """A pass on the branches: what it was given, what it made, and how much of the output a graph loses, in percent."""

    def __init__(self, text: str):
        torch.manual_seed(0)
        self.before, self.x = graph_of(Branches(), normal(4, 32)), {"x0": normal(128, 32)}
        self.context = Context(lambda n: [self.x], is_logits=False, kernels=OnnxRuntime().quantizes)
        self.quantize = parse_pass(text)
        assert isinstance(self.quantize, Quantize)
        graph = self.before.copy()
        self.first = Softened(graph, run_pipeline(graph, [self.quantize], self.context)[0])

    def drop(self, graph: Graph) -> float:
        made, wanted = graph.run(self.x)["y"], self.before.run(self.x)["y"]
        return 100 * float((made - wanted).square().sum() / wanted.square().sum())

    def within(self, allowed: float) -> Softened:
        assert isinstance(self.quantize, Quantize)
        return soften(self.first, self.before, self.quantize, self.context, self.drop, allowed, "%")


INT4 = 'quantize{kind=int4,sweeps=0,targets=["*t"]}'
INT8 = 'quantize{kind=int8,ranges=minmax,targets=["*t"]}'


def test_within_its_budget_nothing_is_spared():
    trial = Trial(INT8)
    assert trial.within(100.0) is trial.first


@pytest.mark.parametrize(
    ("text", "spared", "types"),
    [(INT4, "in 8 bits", ["int4", "int8", "int4"]), (INT8, "in float", ["int8", "", "int8"])],
)
def test_the_site_that_loses_most_is_spared_first_and_no_more_than_needed(text, spared, types):
    trial = Trial(text)
    before = trial.drop(trial.first.graph)
    made = trial.within(before / 4)
    assert trial.drop(made.graph) <= before / 4
    rows = {row.site: row for row in made.outcome.rows}
    assert [rows[f"branches.{i}.weight"].dtype for i in range(3)] == types
    [note] = made.outcome.notes
    assert note.startswith(f"Backed off: 1 of 3 sites stay {spared}, those that lost most")
    assert "branches.1 (" in note
    assert note.endswith(f"instead of {before:.2f}.")
    if spared == "in float":
        assert rows["branches.1.weight"].reason == "in float: it lost most (--back-off)"
        assert set(made.graph.grids) == {"branches.0.weight", "branches.2.weight"}


def test_a_budget_of_nothing_leaves_every_site_in_float():
    trial = Trial(INT8)
    made = trial.within(0.0)
    assert not made.graph.grids
    assert not made.graph.points
    assert trial.drop(made.graph) == 0
    assert {row.status for row in made.outcome.rows} == {"left"}


def test_wide_is_for_int4_alone_and_names_what_is_there():
    with pytest.raises(RecipeError, match=r"wide cannot be a\.b for int8"):
        parse_pass("quantize{kind=int8,wide=[a.b]}")
    graph = graph_of(Branches(), normal(4, 32))
    with pytest.raises(RecipeError, match="no weight is named 'nothing'"):
        parse_pass("quantize{kind=int4,sweeps=0,wide=[nothing]}").plan(graph)


@pytest.mark.slow
def test_a_report_tells_what_was_spared_and_what_codes_alone_cost(tmp_path):
    recipe = (
        "export{model=tiny-gpt2,samples=8,max_drop=1,back_off=true} | "
        "sparsify{pattern=2:4,method=magnitude,refit=0} | quantize{kind=int4,sweeps=0}"
    )
    report = compressor.export(None, recipe, output=tmp_path / "a")
    assert [one.name for one in report.promises if not one.met] == ["the score stays within the budget"]
    assert "16 of 16 sites stay in 8 bits" in report.notes[0]
    assert {site.dtype for site in report.sites if site.status == "changed"} == {"int8"}
    beside = report.unquantized
    assert beside is not None
    assert 0 < beside.difference < 1
    assert beside.score is not None
    assert report.scores is not None
    assert report.scores.dense.value < beside.score.value
    assert beside.drop == pytest.approx(100 * (report.scores.artifact.value / beside.score.value - 1), rel=1e-3)
