"""The law of cutting as a property: over small graphs put together at random, every one is cut as it is masked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.channels.groups import find_groups, find_orders
from compressor.channels.permute import permute, why_fixed
from compressor.graph import Graph
from tests.compressor.laws import CLOSE, check_the_law, some, unsettle
from tests.compressor.tiny import graph_of, normal


class Convolve(nn.Module):
    def __init__(self, c: int, out: int, groups: int = 1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, out, 3, padding=1, groups=groups), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, c: int, out: int):
        super().__init__()
        self.inner = nn.Sequential(Convolve(c, out), nn.Conv2d(out, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


class Widen(nn.Module):
    """A shortcut that pads channels, beside a convolution."""

    def __init__(self, c: int):
        super().__init__()
        self.inner = Convolve(c, c + 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 1, 3)) + self.inner(x)


class Gate(nn.Module):
    """Squeeze and excite: a factor for each channel from the mean of its pixels."""

    def __init__(self, c: int, out: int):
        super().__init__()
        self.down, self.up = nn.Linear(c, out), nn.Linear(out, c)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.gelu(self.down(x.mean((2, 3))))))[:, :, None, None]


class Beside(nn.Module):
    """Two branches, one after the other along the channels."""

    def __init__(self, c: int, out: int):
        super().__init__()
        self.a, self.b = Convolve(c, out), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), x[:, 1:]], dim=1)


class Swap(nn.Module):
    """Halves of the channels: one is left alone, the other convolved; then a shuffle (ShuffleNet)."""

    def __init__(self, c: int):
        super().__init__()
        self.inner = Convolve(c // 2, c // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat([a, self.inner(b)], dim=1)
        return y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Attend(nn.Module):
    """Pixels attend to each other; keys and values are shared by pairs of heads."""

    def __init__(self, c: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.o = nn.Linear(c, 4 * heads), nn.Linear(c, 4 * heads), nn.Linear(4 * heads, c)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)  # (B, pixels, C)
        q = self.q(y).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        k, v = self.kv(y).unflatten(-1, (2, self.heads // 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = (one[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for one in (k, v))
        z = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.o(z.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Share(nn.Module):
    """All heads of queries read one head of keys and values."""

    def __init__(self, c: int, heads: int):
        super().__init__()
        self.heads, self.q, self.kv, self.o = heads, nn.Linear(c, 4 * heads), nn.Linear(c, 8), nn.Linear(4 * heads, c)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)  # (B, pixels, C)
        q = self.q(y).unflatten(-1, (self.heads, 4)).transpose(1, 2)
        k, v = self.kv(y)[:, None].chunk(2, dim=-1)
        z = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.o(z.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


class Upsample(nn.Module):
    """Down and up again by a transposed convolution, beside a way that skips both (U-Net)."""

    def __init__(self, c: int, out: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(c, out, 2, stride=2), nn.ConvTranspose2d(out, out + 1, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.gelu(self.up(torch.sigmoid(self.down(x)))), x], dim=1)


class Normalize(nn.Module):
    """Statistics over pairs of channels, then over each alone."""

    def __init__(self, c: int, out: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(c, out, 1), nn.GroupNorm(out // 2, out), nn.SiLU(), nn.Conv2d(out, out, 1), nn.GroupNorm(out, out)
        )
        self.last = nn.Conv2d(out, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.sigmoid(self.inner(x)))


KINDS = (
    "conv", "depthwise", "grouped", "residual", "widen", "gate", "beside", "swap", "attend", "share", "upsample",
    "normalize",
)  # fmt: skip
Plan = list[tuple[str, int]]  # (kind of layer, a number of channels)
PLANS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([4, 6])), min_size=1, max_size=3)


def layer(kind: str, c: int, out: int) -> tuple[nn.Module, int]:
    """A module for c channels, and how many it makes."""
    if kind == "conv":
        return Convolve(c, out), out
    if kind == "depthwise":
        return Convolve(c, 2 * c, groups=c), 2 * c
    if kind == "grouped" and c % 2 == 0:
        return Convolve(c, out, groups=2), out
    if kind == "widen":
        return Widen(c), c + 4
    if kind == "gate":
        return Gate(c, out), c
    if kind == "beside":
        return Beside(c, out), out + 2 * c - 1
    if kind == "swap" and c % 2 == 0:
        return Swap(c), c
    if kind == "upsample":
        return Upsample(c, out), out + 1 + c
    within = {"attend": Attend, "share": Share, "normalize": Normalize}.get(kind, Residual)
    return within(c, out), c


def network(plan: Plan) -> Graph:
    torch.manual_seed(0)
    layers: list[nn.Module] = [Convolve(3, 6)]
    c = 6
    for kind, out in plan:
        made, c = layer(kind, c, out)
        layers.append(made)
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * c, 3))
    graph = graph_of(model.double(), normal(2, 3, 4, 4).double())
    unsettle(graph)
    return graph


def check(graph: Graph, seed: int) -> None:
    smaller = check_the_law(graph, some(find_groups(graph), share=0.4, seed=seed))
    if again := some(find_groups(smaller), share=0.4, seed=seed + 1):
        check_the_law(smaller, again)
    orders = {group.name: torch.randperm(group.units) for group in find_orders(graph) if not why_fixed(graph, group)}
    before = graph.run(graph.example)["y"]
    permute(graph, orders)
    assert (graph.run(graph.example)["y"] - before).abs().max() < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_layer_is_cut_as_it_is_masked(kind: str):
    check(network([(kind, 4)]), seed=0)


@settings(max_examples=3)
@given(PLANS, st.integers(0, 3))
def test_any_network_is_cut_as_it_is_masked(plan: Plan, seed: int):
    check(network(plan), seed)


@pytest.mark.slow
@settings(max_examples=150)
@given(PLANS, st.integers(0, 3))
def test_very_many_networks_are_cut_as_they_are_masked(plan: Plan, seed: int):
    check(network(plan), seed)
