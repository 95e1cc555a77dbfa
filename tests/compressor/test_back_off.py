"""Sites made dense again until a budget holds, on a model whose sites hurt by very different amounts."""

import pytest
import torch
from torch import nn

import compressor
from compressor.back_off import back_off
from compressor.errors import RecipeError
from compressor.graph import Graph
from compressor.pipeline import Context, Outcome, Row, parse_pass, run_pipeline
from compressor.proof.report import score_drop
from tests.compressor.tiny import graph_of, normal
from tests.trained import lowered, restored


class Branches(nn.Module):
    """Three branches whose sum is the output; what the first makes counts most, and the last least."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(16, 8) for _ in range(3))

    def forward(self, x):
        return sum(scale * branch(x) for scale, branch in zip((0.1, 10.0, 1.0), self.branches, strict=True))


@pytest.fixture
def pruned():
    """(the graph pruned, the dense one, its outcomes, a context, the share of the output that is lost)."""
    torch.manual_seed(0)
    graph = graph_of(Branches(), normal(4, 16))
    dense, x = graph.copy(), {"x0": normal(256, 16)}
    context = Context(lambda n: [x], is_logits=False)
    outcomes = run_pipeline(graph, [parse_pass('sparsify{pattern=2:4,bias=true,targets=["*t"]}')], context)

    def drop() -> float:
        made, wanted = graph.run(x)["y"], dense.run(x)["y"]
        return 100 * float((made - wanted).square().sum() / wanted.square().sum())

    return graph, dense, outcomes, context, drop


def dense_again(graph: Graph, dense: Graph) -> list[str]:
    pairs = zip(graph.sites, dense.sites, strict=True)
    return [site.name for site, before in pairs if torch.equal(site.weight, before.weight)]


def test_within_its_budget_nothing_is_touched(pruned):
    graph, dense, outcomes, context, drop = pruned
    assert back_off(graph, dense, outcomes, context, drop, 100.0, "%") == outcomes
    assert dense_again(graph, dense) == []


def test_the_site_that_hurts_most_comes_first_and_no_more_than_needed(pruned):
    graph, dense, outcomes, context, drop = pruned
    before = drop()
    [outcome] = back_off(graph, dense, outcomes, context, drop, before / 4, "%")
    assert dense_again(graph, dense) == ["branches.1.weight"]
    assert torch.equal(graph.sites[1].offset.tensor, dense.sites[1].offset.tensor)
    assert drop() <= before / 4
    rows = {row.site: row for row in outcome.rows}
    assert rows["branches.1.weight"].status == "left"
    assert rows["branches.1.weight"].reason == "dense again: it hurt most (--back-off)"
    assert rows["branches.0.weight"].status == rows["branches.2.weight"].status == "changed"
    assert outcome.notes[0].startswith("Backed off: 1 of 3 sites are dense again")
    assert f"instead of {before:.2f}." in outcome.notes[0]


def test_a_budget_of_nothing_makes_every_site_dense_again(pruned):
    graph, dense, outcomes, context, drop = pruned
    back_off(graph, dense, outcomes, context, drop, 0.0, "%")
    assert len(dense_again(graph, dense)) == 3
    assert drop() == 0


def test_what_was_refused_stays_refused(pruned):
    graph, dense, outcomes, context, drop = pruned
    outcomes = [Outcome((*outcomes[0].rows, Row("odd.weight", "refused", "why not")))]
    [outcome] = back_off(graph, dense, outcomes, context, drop, 0.0, "%")
    assert [row.reason for row in outcome.of("refused")] == ["why not"]


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("export{back_off=true} | sparsify{pattern=2:4}", "back_off needs a budget to keep to"),
        ("export{back_off=true,max_drop=1}", "back_off cannot undo nothing"),
        (
            "export{back_off=true,max_drop=1} | channels{amount=0.5} | sparsify{pattern=2:4}",
            "back_off cannot undo channels and sparsify",
        ),
    ],
)
def test_without_a_budget_or_with_other_passes_it_is_refused(recipe, what, tmp_path):
    with pytest.raises(RecipeError, match=what):
        compressor.export("tiny-gpt2", recipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_on_a_trained_gpt2_few_sites_bring_the_perplexity_within_its_budget():
    source, graph = lowered("tiny-gpt2")
    evaluation = source.evaluation(8)
    with restored(graph):
        dense, score, context = graph.copy(), evaluation.score(graph.run), Context(source.calibration)
        outcomes = run_pipeline(graph, [parse_pass("sparsify{pattern=2:4,samples=16}")], context)

        def drop() -> float:
            return score_drop(score, evaluation.score(graph.run))[0]

        before = drop()
        back_off(graph, dense, outcomes, context, drop, before / 2, "%")
        assert drop() <= before / 2
        assert len(dense_again(graph, dense)) <= 8 + sum(site.role != "" for site in graph.sites)
