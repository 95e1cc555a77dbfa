import copy
import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compressor.calibrate import (
    ROWS_PER_COLUMN,
    Block,
    calibrate,
    held_out,
    measure,
)
from compressor.errors import DataError
from compressor.graph import Feeds, Graph
from compressor.machine import Machine
from compressor.progress import Quiet
from compressor.segments import block_of, segments
from compressor.sites import WeightSite
from compressor.statistics import GRAM_BLOCK, Statistics
from tests.compressor.tiny import Compute, graph_of, normal


class Layer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:])
        x = x + self.o(torch.sigmoid(self.q(y) + self.k(y)) * self.v(y))
        return x + self.down(F.gelu(self.up(x)))


class Tower(nn.Module):
    """Blocks on a residual stream, and a head: what a language model looks like to the calibration."""

    def __init__(self, n_blocks: int = 3, d: int = 4):
        super().__init__()
        self.h = nn.ModuleList(Layer(d) for _ in range(n_blocks))
        self.head = nn.Linear(d, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.h:
            x = block(x)
        return self.head(x)


@pytest.fixture
def tower() -> tuple[nn.Module, Graph]:
    torch.manual_seed(1)
    model = Tower()
    return model, graph_of(model, normal(2, 3, 4))


def batches(*shape: int, n: int = 3) -> list[Feeds]:
    return [{"x0": normal(*shape, seed=seed)} for seed in range(n)]


def run(graph: Graph, feeds: list[Feeds], **options: object):
    """Each segment with its statistics."""
    blocks = calibrate(graph, graph.sites, feeds, seed=0, progress=Quiet(), **options)  # type: ignore[arg-type]
    return ((block.segment, block.statistics) for block in blocks)


def snapshot(graph: Graph, feeds: list[Feeds]) -> dict[str, tuple[Tensor, int]]:
    """Every site's Gram matrices and rows, of weights that nobody changes."""
    return {site.name: (one.H.clone(), one.n) for _, found in run(graph, feeds) for site, one in found.items()}


@contextmanager
def hooks(model: nn.Module, grams: dict[str, Tensor]):
    """While it lasts, the inputs of every Linear add up to Gram matrices, by the name of its weight."""

    def watch(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            X = args[0].reshape(-1, args[0].shape[-1])
            grams[name] = grams.get(name, 0) + X.T @ X

        return hook

    modules = [(f"{name}.weight", one) for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    handles = [one.register_forward_pre_hook(watch(name)) for name, one in modules]
    yield
    for handle in handles:
        handle.remove()


def hooked(model: nn.Module, feeds: list[Feeds]) -> dict[str, Tensor]:
    grams: dict[str, Tensor] = {}
    with hooks(model, grams), torch.no_grad():
        for batch in feeds:
            model(batch["x0"])
    return grams


# *** statistics ***


def test_rows_add_up():
    statistics = Statistics(torch.zeros(2, 2, 2))
    statistics.add(torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]]))
    statistics.add(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]]))
    assert statistics.n == 2
    assert statistics.H.tolist() == [[[2, 2], [2, 4]], [[1, 1], [1, 10]]]
    assert statistics.gram().tolist() == [[[1, 1], [1, 2]], [[0.5, 0.5], [0.5, 5]]]
    assert statistics.mean().tolist() == [[1, 1], [0.5, 2]]


def test_many_columns_add_up_block_by_block():
    X = normal(1, 7, 2 * GRAM_BLOCK + 5)
    statistics = Statistics(torch.zeros(1, X.shape[2], X.shape[2]))
    statistics.add(X)
    torch.testing.assert_close(statistics.gram(), X.mT @ X / 7)


def test_half_precision_adds_up_in_single():
    statistics = Statistics(torch.zeros(1, 1, 1))
    statistics.add(torch.full((1, 3000, 1), 1.0, dtype=torch.float16))
    assert statistics.H.item() == 3000  # in half precision the sum would stop at 2048
    assert statistics.H.dtype == torch.float32


def test_no_rows_mean_nothing():
    assert Statistics(torch.zeros(1, 2, 2)).gram().count_nonzero() == 0


def test_statistics_are_those_of_module_hooks(tower):
    model, graph = tower
    feeds = batches(2, 5, 4)
    expected = hooked(model, feeds)
    found = snapshot(graph, feeds)
    assert list(found) == list(expected)
    for name, (H, n) in found.items():
        assert n == 3 * 2 * 5
        torch.testing.assert_close(H[0], expected[name])


def test_layers_that_read_the_same_activation_share_their_statistics(tower):
    _, graph = tower
    for _, found in run(graph, batches(2, 3, 4)):
        by_name = {site.name.split(".")[-2]: one for site, one in found.items()}
        assert len({id(one) for one in by_name.values()}) == (4 if "q" in by_name else 1)
        assert by_name.get("q") is by_name.get("k") is by_name.get("v")


def test_a_weight_used_twice_sums_over_both_uses():
    model = Compute(lambda self, x: self.fc(torch.tanh(self.fc(x))), fc=nn.Linear(4, 4))
    feeds = batches(5, 4)
    [(H, n)] = snapshot(graph_of(model, normal(3, 4)), feeds).values()
    assert n == 2 * 3 * 5
    torch.testing.assert_close(H[0], hooked(model, feeds)["fc.weight"])


def test_a_small_convolution_is_seen_whole():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), nn.Flatten(), nn.Linear(54, 2))
    feeds = batches(2, 4, 5, 5, n=2)
    H, n = snapshot(graph_of(model, normal(2, 4, 5, 5)), feeds)["0.weight"]
    assert n == 2 * 2 * 9
    patches = torch.cat([F.unfold(batch["x0"], 3, padding=1, stride=2).movedim(1, -1) for batch in feeds])
    X = patches.reshape(n, 2, 2, 9).movedim(1, 0).mT.reshape(2, n, 18)  # (groups, n, (kernel, C_in))
    torch.testing.assert_close(H, X.mT @ X)


def test_a_large_convolution_is_sampled_the_same_way_each_time():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 2, 1))
    graph = graph_of(model, normal(2, 1, 30, 30))
    feeds = batches(2, 1, 30, 30, n=2)
    first, again = snapshot(graph, feeds), snapshot(graph, feeds)
    assert first["0.weight"][1] == 2 * (ROWS_PER_COLUMN * 4 // 2 + 1)
    assert all(torch.equal(first[name][0], again[name][0]) for name in first)


# *** segments ***


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("transformer.h.3.mlp.c_fc.weight", "transformer.h.3"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("model.layers.11.mlp.experts.2.up.weight", "model.layers.11"),
        ("conv1.weight", "conv1.weight"),
        ("weight", "weight"),
        ("0.weight", "0"),
    ],
)
def test_a_block_is_a_name_up_to_its_first_number(name, block):
    assert block_of(name) == block


def named(graph: Graph, sites: list[WeightSite] | None = None) -> list[list[str]]:
    parts = segments(graph, graph.sites if sites is None else sites)
    return [[site.name.removesuffix(".weight") for site in part.sites] for part in parts]


def test_a_segment_holds_the_sites_of_one_block(tower):
    _, graph = tower
    blocks = [[f"h.{i}.{name}" for name in ("q", "k", "v", "o", "up", "down")] for i in range(3)]
    assert named(graph) == [*blocks, ["head"]]


def test_segments_share_no_node_and_stop_at_the_last_site(tower):
    _, graph = tower
    some = [site for site in graph.sites if site.name.startswith("h.1.")]
    [part] = segments(graph, some)
    order = [node.name for part in segments(graph, graph.sites) for node in part.nodes]
    assert len(order) == len(set(order))
    assert some[-1].uses[0].node not in part.nodes
    assert not part.live


def test_a_cut_carries_one_residual_stream(tower):
    _, graph = tower
    lives = [part.live for part in segments(graph, graph.sites)]
    assert [[node.target for node in live] for live in lives] == [[torch.ops.aten.add.Tensor]] * 3 + [[]]


def test_a_weight_used_in_two_blocks_is_not_cut_apart():
    shared = nn.Linear(4, 4)
    a, b, c = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
    model = Compute(lambda self, x: self.c(self.s(self.b(self.s(self.a(x))))), a=a, b=b, c=c, s=shared)
    graph = graph_of(model, normal(3, 4))
    assert named(graph) == [["a.0"], ["s", "b.0"], ["c.0"]]
    feeds = batches(5, 4)
    expected = hooked(model, feeds)
    for name, (H, _) in snapshot(graph, feeds).items():
        torch.testing.assert_close(H[0], expected[name])


def test_two_heads_on_one_trunk_both_see_it():
    model = Compute(
        lambda self, x: self.a(torch.tanh(self.trunk(x))) + self.b(torch.tanh(self.trunk(x))),
        trunk=nn.Linear(4, 4),
        a=nn.Linear(4, 2),
        b=nn.Linear(4, 2),
    )
    model.function = lambda self, x: (lambda y: self.a(y) + self.b(y))(torch.tanh(self.trunk(x)))
    graph = graph_of(model, normal(3, 4))
    feeds = batches(5, 4)
    found = snapshot(graph, feeds)
    assert list(found) == ["trunk.weight", "a.weight", "b.weight"]
    assert torch.equal(found["a.weight"][0], found["b.weight"][0])


def test_nothing_to_calibrate_is_no_segment(tower):
    _, graph = tower
    assert segments(graph, []) == []
    assert list(calibrate(graph, [], batches(2, 3, 4), seed=0, progress=Quiet())) == []


# *** each on the outputs of the pruned ones before ***


def test_a_block_sees_the_new_weights_of_the_blocks_before_and_the_old_ones_of_its_own(tower):
    model, graph = tower
    feeds = batches(2, 5, 4)
    for part, found in run(graph, feeds):
        expected = hooked(model, feeds)  # blocks before are zeroed, this one is not
        for site, one in found.items():
            torch.testing.assert_close(one.H[0], expected[site.name])
        for site in part.sites:
            site.write(site.matrix() * (site.matrix() > 0))


def test_sites_that_are_not_named_stay_as_they_are(tower):
    model, graph = tower
    feeds = batches(2, 5, 4)
    some = [site for site in graph.sites if site.name.endswith("up.weight")]
    expected = hooked(model, feeds)
    for block in calibrate(graph, some, feeds, seed=0, progress=Quiet()):
        for site, one in block.statistics.items():
            torch.testing.assert_close(one.H[0], expected[site.name])


def test_an_operator_that_works_in_place_spoils_no_value_that_is_read_again():
    layers = {name: nn.Linear(4, 4) for name in "abc"}
    model = Compute(lambda self, x: self.c(self.b(self.a(x).mul_(2).add_(1))), **layers)
    feeds = batches(5, 4)
    expected = hooked(model, feeds)
    for name, (H, _) in snapshot(graph_of(model, normal(3, 4)), feeds).items():
        torch.testing.assert_close(H[0], expected[name])


# *** memory ***


def test_statistics_of_one_segment_are_held_at_a_time(tower):
    _, graph = tower
    before: dict[WeightSite, Statistics] = {}
    alive: list[weakref.ref] = []
    for _, found in run(graph, batches(2, 3, 4)):
        gc.collect()
        assert not before
        assert not [one for one in alive if one() is not None]
        alive += [weakref.ref(one) for one in found.values()]
        before = found


def test_a_value_is_freed_after_its_last_reader(monkeypatch):
    model = Compute(lambda self, x: self.b(self.deep(self.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    model.deep = nn.Sequential(*[nn.Tanh() for _ in range(50)])
    graph = graph_of(model, normal(3, 4))
    held: list[int] = []
    run_node = Machine.run_node

    def counting(self: Machine, node: fx.Node):
        held.append(len(self.env) - len(self.weights))
        return run_node(self, node)

    monkeypatch.setattr(Machine, "run_node", counting)
    snapshot(graph, batches(5, 4))
    assert len(held) > 50
    assert max(held) <= 2


def test_the_measured_cut_counts_activations_and_not_the_weights_to_come(tower):
    _, graph = tower
    measured = measure(graph, graph.sites, {"x0": normal(2, 5, 4)})
    assert measured.live_bytes == 2 * 5 * 4 * 4
    assert measured.segment_statistics == (*[4 * (4 * 4 * 3 + 8 * 8)] * 3, 4 * 4 * 4)
    assert set(measured.rows.values()) == {10}


def test_progress_counts_every_step(tower):
    _, graph = tower
    steps: list[int | None] = []

    class Counting(Quiet):
        @contextmanager
        def task(self, label, total):
            steps.append(total)
            yield lambda: steps.append(None)

    list(calibrate(graph, graph.sites, batches(2, 3, 4), seed=0, progress=Counting()))
    assert steps[0] == len(steps) - 1 == (4 + 3) * 3


# *** beside the dense model ***


def beside(graph: Graph, feeds: list[Feeds], **options: object):
    options = {"beside": True, "cross": True, "hold_out": True} | options
    return calibrate(graph, graph.sites, feeds, seed=0, progress=Quiet(), **options)  # type: ignore[arg-type]


def halve(block: Block) -> None:
    for site in block.segment.sites:
        site.write(site.matrix() / 2)


def inputs_of(module: nn.Module, model: nn.Module, feeds: list[Feeds]) -> list[Tensor]:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in feeds:
            model(batch["x0"])
    handle.remove()
    return seen


def test_every_fifth_batch_is_held_out_and_of_few_the_last():
    assert [list(held_out(n)) for n in (1, 3, 5, 11)] == [[0], [2], [4], [4, 9]]


def test_one_batch_cannot_be_learned_from_and_held_out(tower):
    _, graph = tower
    with pytest.raises(DataError, match="cannot be both") as caught:
        next(beside(graph, batches(2, 3, 4, n=1)))
    assert caught.value.found == "2 samples in one batch"
    assert next(beside(graph, batches(2, 3, 4, n=1), hold_out=False)).statistics


def test_the_dense_stream_stays_dense_while_the_other_is_pruned(tower):
    model, graph = tower
    feeds = batches(2, 5, 4, n=4)
    dense = copy.deepcopy(model)
    for block, reader in zip(beside(graph, feeds), [*dense.h[1:], dense.head], strict=False):
        expected = inputs_of(reader, dense, feeds)
        for found, x in zip(block.dense, expected, strict=True):
            torch.testing.assert_close(*found.values(), x)
        halve(block)


def test_the_cross_gram_relates_dense_inputs_to_pruned_ones(tower):
    model, graph = tower
    feeds = batches(2, 5, 4, n=4)
    dense = copy.deepcopy(model)
    for block in beside(graph, feeds):
        for site, one in block.statistics.items():
            name = site.name.removesuffix(".weight")
            Z, X = (
                torch.cat(inputs_of(net.get_submodule(name), net, feeds[:3])).reshape(-1, site.d)
                for net in (dense, model)
            )
            assert one.n == len(X)
            torch.testing.assert_close(one.cross()[0], Z.T @ X / len(X))
            torch.testing.assert_close(one.mean_dense()[0], Z.mean(0))
        halve(block)


def test_the_held_out_error_is_that_of_the_scored_output_of_the_batch_held_out(tower):
    model, graph = tower
    feeds = batches(2, 5, 4, n=4)
    wanted = copy.deepcopy(model)(feeds[3]["x0"])
    for block in beside(graph, feeds):
        halve(block)
        expected = (model(feeds[3]["x0"]) - wanted).square().sum() / wanted.square().sum()
        assert block.held_out_error() == pytest.approx(expected.item(), rel=1e-4)


def test_the_last_segment_ends_with_its_block_before_the_head(tower):
    _, graph = tower
    some = [site for site in graph.sites if site.name.startswith("h.")]
    last = segments(graph, some, whole=True)[-1]
    assert [node.target for node in last.outputs] == [torch.ops.aten.add.Tensor]
    assert last.sites[-1].uses[0].node in last.nodes


def test_where_nothing_lives_on_the_outputs_are_those_of_the_sites(tower):
    _, graph = tower
    [part] = segments(graph, graph.sites[-1:], whole=True)
    assert part.outputs == {graph.sites[-1].uses[0].node}
