"""Channel groups of graphs that can be checked by hand, as exact text; what cannot be cut, with its reason."""

import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.channels.groups import find_groups
from compressor.channels.listing import listing
from compressor.errors import SourceError
from compressor.graph import Graph, Port, lower
from tests.compressor.tiny import BATCH, Compute, graph_of, normal


def groups_of(model: nn.Module, *inputs: Tensor) -> str:
    return listing(find_groups(graph_of(model, *inputs)))


def text(lines: str) -> str:
    return textwrap.dedent(lines).strip()


def test_the_hidden_channels_of_an_mlp_go_from_both_matrices_and_the_bias():
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2))
    assert groups_of(model, normal(4, 3)) == text("""
        0.weight: mlp, 5 units
          produces 1 of 0.weight axis 0
          follows 1 of 0.bias axis 0
          consumes 1 of 2.weight axis 1
        2.weight: other, 2 units, frozen: the output y is made of them
          produces 1 of 2.weight axis 0
          follows 1 of 2.bias axis 0
        """)


def test_a_gated_mlp_is_one_group():
    def gated(m: Any, x: Tensor) -> Tensor:
        return m.down(torch.nn.functional.silu(m.gate(x)) * m.up(x))

    parts = {"gate": nn.Linear(3, 4, False), "up": nn.Linear(3, 4, False), "down": nn.Linear(4, 3, False)}
    first = groups_of(Compute(gated, **parts), normal(4, 3)).split("down.weight: ")[0]
    assert first.rstrip() == text("""
        gate.weight: mlp, 4 units
          produces 1 of gate.weight axis 0
          produces 1 of up.weight axis 0
          consumes 1 of down.weight axis 1
        """)


def test_a_convolution_takes_its_normalization_along_and_every_pixel_of_a_flattened_channel():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 2))
    found = groups_of(model, normal(2, 3, 4, 4))
    assert found.startswith(
        text("""
        0.weight: conv, 4 units
          produces 1 of 0.weight axis 0
          follows 1 of 0.bias axis 0
          follows 1 of 1.weight axis 0
          follows 1 of 1.bias axis 0
          consumes 4 of 4.weight axis 1
          follows 1 of 1.running_mean axis 0
          follows 1 of 1.running_var axis 0
        """)
    )


def test_a_residual_stream_is_one_group_and_frozen_under_a_layer_norm():
    def residual(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        x = x + m.second(torch.relu(x))
        return m.last(m.norm(x) if hasattr(m, "norm") else x)

    parts = {"first": nn.Linear(3, 4), "second": nn.Linear(4, 4), "last": nn.Linear(4, 2)}
    plain = find_groups(graph_of(Compute(residual, **parts), normal(2, 3)))[0]
    normed = find_groups(graph_of(Compute(residual, **parts, norm=nn.LayerNorm(4)), normal(2, 3)))[0]
    assert (plain.kind, plain.units, plain.frozen) == ("width", 4, "")
    assert [one.name for one in plain.producers] == ["first.weight", "second.weight"]
    assert [(one.name, one.role) for one in plain.slices if one.axis == 1] == [
        ("second.weight", "consumes"),
        ("last.weight", "consumes"),
    ]
    assert normed.frozen == "a layer normalization takes its statistics over them"


def attention(n_heads: int, n_kv: int, width: int = 8) -> nn.Module:
    size = width // n_heads

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, size)).transpose(1, 2) for part in (m.q, m.k, m.v))
        k, v = (one.repeat_interleave(n_heads // n_kv, dim=1) for one in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.o(y.transpose(1, 2).flatten(2))

    kv = n_kv * size
    parts = {
        "q": nn.Linear(width, width),
        "k": nn.Linear(width, kv),
        "v": nn.Linear(width, kv),
        "o": nn.Linear(width, 3),
    }
    return Compute(forward, **parts)


def test_a_key_value_head_goes_with_the_query_heads_that_read_it():
    [heads, *_] = find_groups(graph_of(attention(4, 2), normal(2, 5, 8)))
    assert (heads.kind, heads.units, heads.name) == ("heads", 2, "q.weight")
    held = {(one.name, one.axis): one.positions(1).tolist() for one in heads.slices}
    assert held["q.weight", 0] == [4, 5, 6, 7]
    assert held["k.weight", 0] == held["v.bias", 0] == [2, 3]
    assert held["o.weight", 1] == [4, 5, 6, 7]


def test_the_query_heads_of_a_single_key_value_head_go_one_by_one():
    groups = {group.name: group for group in find_groups(graph_of(attention(4, 1), normal(2, 5, 8)))}
    assert (groups["q.weight"].kind, groups["q.weight"].units, groups["q.weight"].frozen) == ("heads", 4, "")
    assert groups["k.weight"].frozen
    assert groups["v.weight"].frozen


def test_a_tied_weight_is_listed_once():
    def tied(m: Any, x: Tensor) -> Tensor:
        return nn.functional.linear(m.inner(m.table(x)), m.table.weight)

    model = Compute(tied, table=nn.Embedding(7, 4), inner=nn.Linear(4, 4, False))
    rows, columns = find_groups(graph_of(model, torch.tensor([[1, 2], [3, 4]])))[:2]
    assert rows.frozen == "they are looked up by number"
    assert [(one.name, one.axis, one.role) for one in columns.slices] == [
        ("table.weight", 1, "produces"),
        ("inner.weight", 0, "produces"),
        ("inner.weight", 1, "consumes"),
    ]


REASONS: list[tuple[str, Callable[[Any, Tensor], Tensor], str]] = [
    ("mean", lambda m, x: m.b(m.a(x) - m.a(x).mean(-1, keepdim=True)), "mean is taken over them"),
    ("softmax", lambda m, x: m.b(m.a(x).softmax(-1)), "softmax runs over them"),
    ("sort", lambda m, x: m.b(m.a(x).sort(-1).values), "sort.default has no rule"),
    ("rms", lambda m, x: m.b(m.a(x) * m.a(x).pow(2).mean(-1, keepdim=True).rsqrt()),
     "an RMS normalization takes its statistics over them"),
    ("roll", lambda m, x: m.b(m.a(x).roll(1, -1)), "a roll carries them past the end"),
    ("taken", lambda m, x: m.b(m.a(x)) * m.a(x)[:, :1], "one of them is taken out by its number"),
    ("meets", lambda m, x: m.b(m.a(x) + torch.arange(4)), "they meet values that are no channels"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "reason"), [one[1:] for one in REASONS], ids=[one[0] for one in REASONS])
def test_what_cannot_be_cut_says_why(function: Callable[[Any, Tensor], Tensor], reason: str):
    model = Compute(function, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    [first, *_] = find_groups(graph_of(model, normal(2, 3)))
    assert (first.name, first.frozen) == ("a.weight", reason)


def test_refuses_a_graph_whose_shapes_depend_on_data():
    graph = graph_of(Compute(lambda m, x: m.a(x), a=nn.Linear(3, 4)), normal(2, 3))
    unbacked = lower_with_unbacked()
    assert find_groups(graph)
    with pytest.raises(SourceError, match="shapes that depend on data"):
        find_groups(unbacked)


def lower_with_unbacked() -> Graph:
    class Selects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)[x[:, 0] > 0].sum(0, keepdim=True)

    model = Selects()
    return lower(model, lambda x: (model(x),), {"x": normal(4, 3)}, (Port("x", BATCH),), (Port("y", {}),))
