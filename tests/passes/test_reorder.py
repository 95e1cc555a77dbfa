"""Channels in another order before 2:4: the dense model computes the same, and 2:4 removes less of it."""

import pytest
import torch
from torch import Tensor, nn

from compressor.graph import Graph
from compressor.passes import reorder as module
from compressor.passes.neighbours import lost_score
from compressor.passes.reorder import reorder
from compressor.pattern import NM
from compressor.pipeline import Context, Outcome, parse_pass, run_pipeline
from compressor.sites import WeightSite
from tests.compressor.laws import CLOSE, unsettle
from tests.compressor.test_channels import attention
from tests.compressor.tiny import Compute, graph_of, normal
from tests.passes.test_sparsify import context

P24 = NM(2, 4)


def mlp(hidden: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(8, hidden), nn.GELU(), nn.Linear(hidden, 8))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(x).sigmoid() * self.up(x))


class Stream(nn.Module):
    """A stream that two blocks add to, each of which reads it through a layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.ups = nn.ModuleList([nn.Linear(16, 24), nn.Linear(16, 24)])
        self.downs = nn.ModuleList([nn.Linear(24, 16), nn.Linear(24, 16)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(up(norm(x)).relu())
        return self.head(x)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 1), nn.Flatten(),
        nn.Linear(4 * 4 * 4, 3),
    )  # fmt: skip


def capture(model: nn.Module, *shape: int) -> Graph:
    torch.manual_seed(0)
    for x in model.parameters():
        nn.init.normal_(x)
    graph = graph_of(model.double(), normal(*shape).double())
    unsettle(graph)
    for site in graph.sites:
        spread = torch.logspace(0, 1, site.K).repeat(site.d // site.K)  # columns that differ, as trained ones do
        site.write(site.matrix() * spread)
    return graph


MODELS = {
    "mlp": (mlp, (6, 8)),
    "gated mlp": (Gated, (6, 8)),
    "residual stream": (Stream, (6, 8)),
    "convolutions": (convolutions, (2, 4, 8, 8)),
    "grouped heads": (lambda: attention(4, 2, width=32), (2, 5, 32)),
}


def pruned_sites(graph: Graph) -> list[WeightSite]:
    return [site for site in graph.sites if site.K % 4 == 0]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", MODELS)
def test_a_dense_model_with_its_channels_in_another_order_computes_the_same(name, method):
    make, shape = MODELS[name]
    graph = capture(make(), *shape)
    before, weights = graph.run(graph.example)["y"], [site.weight.clone() for site in graph.sites]
    done = reorder(graph, pruned_sites(graph), P24, method, double(graph), bias=True, damping=0.0)
    assert done.orders
    assert (graph.run(graph.example)["y"] - before).abs().max() < CLOSE * before.abs().max()
    assert any(not torch.equal(site.weight, W) for site, W in zip(graph.sites, weights, strict=True))


def double(graph: Graph) -> Context:
    batches = context(graph).calibration(4)
    return Context(lambda n: [{name: x.double() for name, x in batch.items()} for batch in batches])


def test_what_is_said_to_be_saved_is_what_the_pattern_then_removes_less():
    graph = capture(mlp(), 6, 8)
    site = graph.sites[1]
    before = lost_score(site.matrix()[0].square(), torch.arange(16), 2, 4)
    done = reorder(graph, graph.sites, P24, "magnitude", Context(), bias=False, damping=0.0)
    after = lost_score(site.matrix()[0].square(), torch.arange(16), 2, 4)
    assert done.saved[site] == pytest.approx(1 - after / before)
    assert done.saved[site] > 0.1


def test_several_readers_of_the_same_channels_each_have_a_say():
    both = Compute(lambda self, x: self.left(self.up(x)) + 0.001 * self.right(self.up(x).relu()),
                   up=nn.Linear(8, 16), left=nn.Linear(16, 4), right=nn.Linear(16, 4))  # fmt: skip
    graph = capture(both, 6, 8)
    done = reorder(graph, graph.sites, P24, "magnitude", Context(), bias=False, damping=0.0)
    assert {site.name for site in done.saved} == {"left.weight", "right.weight"}
    assert sum(done.saved.values()) > 0


def test_a_stream_is_ordered_for_all_that_read_it_and_what_is_inside_of_its_blocks_for_what_reads_that():
    graph = capture(Stream(), 6, 8)
    done = reorder(graph, pruned_sites(graph), P24, "magnitude", Context(), bias=False, damping=0.0)
    assert set(done.orders) == {"embed.weight", "ups.0.weight", "ups.1.weight"}
    assert {site.name for site in done.saved} == {
        "ups.0.weight", "ups.1.weight", "downs.0.weight", "downs.1.weight", "head.weight",
    }  # fmt: skip


def test_every_head_has_an_order_of_its_own_and_query_heads_that_share_their_values_one_together():
    graph = capture(attention(4, 2, width=32), 2, 5, 32)
    o = next(site for site in graph.sites if site.name == "o.weight")
    before = o.matrix()[0].clone()
    done = reorder(graph, [o], P24, "magnitude", Context(), bias=False, damping=0.0)
    assert (done.heads, [*done.orders]) == (2, ["v.weight", "v.weight#2"])
    first, second = done.orders.values()
    columns = torch.cat([first, 8 + first, 16 + second, 24 + second])
    assert not torch.equal(first, second)
    assert torch.equal(o.matrix()[0], before[:, columns])
    lost = [lost_score(S.square(), torch.arange(32), 2, 4) for S in (before, o.matrix()[0])]
    assert done.saved == {o: pytest.approx(1 - lost[1] / lost[0])}
    assert "2 groups of channels have another order, 2 of them inside of a head;" in done.note(P24)


def test_of_many_rows_some_say_which_order_is_good(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 4)
    graph = capture(mlp(), 6, 8)
    W = graph.sites[1].matrix()[0].square()
    before = graph.run(graph.example)["y"]
    done = reorder(graph, graph.sites[1:], P24, "magnitude", Context(), bias=False, damping=0.0)
    assert (graph.run(graph.example)["y"] - before).abs().max() < CLOSE * before.abs().max()
    order = done.orders["0.weight"]
    assert lost_score(W[::2], order, 2, 4) < lost_score(W[::2], torch.arange(16), 2, 4)


def test_the_dense_model_of_the_context_has_its_channels_in_the_same_order():
    graph = capture(mlp(), 6, 8)
    dense = graph.copy()
    reorder(graph, graph.sites, P24, "magnitude", Context(dense=dense), bias=False, damping=0.0)
    for name, x in graph.module.named_parameters():
        assert torch.equal(x, dict(dense.module.named_parameters())[name])


# *** what stays as it is ***


def kept(model: nn.Module, *shape: int, pattern: NM = P24) -> dict[str, str]:
    graph = capture(model, *shape)
    before = {name: x.clone() for name, x in graph.module.named_parameters()}
    done = reorder(graph, pruned_sites(graph), pattern, "magnitude", Context(), bias=False, damping=0.0)
    assert done.orders == {}
    assert all(torch.equal(x, before[name]) for name, x in graph.module.named_parameters())
    return dict(done.kept)


def test_heads_whose_size_is_no_multiple_of_four_keep_what_is_inside_of_them_in_order():
    assert set(kept(attention(4, 2), 2, 5, 8).values()) == {"groups of 4 neighbours reach beyond them"}


def test_a_flattened_image_keeps_its_order():
    image = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 3))
    assert kept(image, 2, 3, 4, 4) == {"0.weight": "each owns several neighbours"}


def test_groups_of_neighbours_that_reach_beyond_a_group_of_channels_keep_it_in_order():
    def beside(self, x):
        return self.down(torch.cat([self.a(x), self.b(x)], -1))

    model = Compute(beside, a=nn.Linear(8, 6), b=nn.Linear(8, 6), down=nn.Linear(12, 4))
    assert set(kept(model, 5, 8).values()) == {"groups of 4 neighbours reach beyond them"}


def test_channels_that_no_pruned_weight_reads_are_not_spoken_of():
    graph = capture(mlp(), 6, 8)
    done = reorder(graph, graph.sites[:1], P24, "magnitude", Context(), bias=False, damping=0.0)
    assert (done.orders, done.kept) == ({}, {})


def test_columns_that_are_alike_have_no_better_order():
    graph = capture(mlp(), 6, 8)
    with torch.no_grad():
        graph.sites[1].weight.fill_(1.0)
    done = reorder(graph, graph.sites[1:], P24, "magnitude", Context(), bias=False, damping=0.0)
    assert done.kept == {"0.weight": "no other order is better"}


# *** as an option of sparsify ***


def run(graph: Graph, text: str) -> Outcome:
    return run_pipeline(graph, [parse_pass(text)], double(graph))[0]


def test_sparsify_after_it_errs_less_and_says_what_was_saved():
    text = 'sparsify{pattern=2:4,method=%s,targets=["*weight"],ignore=["0.weight"],permute=%s}'
    for method in ("magnitude", "wanda", "sparsegpt", "admm"):
        errors = []
        for permute in ("false", "true"):
            outcome = run(capture(mlp(32), 64, 8), text % (method, permute))
            [row] = outcome.of("changed")
            errors.append(row.numbers["relative_error"])
        assert errors[1] < errors[0], method
        assert 0 < row.numbers["saved_by_order"] < 1
        assert outcome.notes[0].startswith("permute: 1 groups of channels have another order")


def test_a_ratio_has_nothing_to_gain_and_says_so():
    graph = capture(mlp(), 6, 8)
    before = dict(graph.module.named_parameters())["0.bias"].clone()
    outcome = run(graph, 'sparsify{pattern=0.5,method=magnitude,refit=0,targets=["*"],permute=true}')
    assert outcome.notes == (module.NOTHING_TO_GAIN,)
    assert torch.equal(dict(graph.module.named_parameters())["0.bias"], before)


def test_a_graph_that_computes_something_else_in_another_order_is_our_bug(monkeypatch):
    graph = capture(mlp(), 6, 8)
    monkeypatch.setattr(module, "permute", lambda graph, orders: graph.sites[0].weight.data.mul_(2))
    with pytest.raises(module.InternalError, match="does not compute what it did"):
        reorder(graph, graph.sites, P24, "magnitude", Context(), bias=False, damping=0.0)
