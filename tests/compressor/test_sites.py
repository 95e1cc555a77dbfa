import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compressor.graph import Graph
from compressor.sites import WeightSite
from tests.compressor.tiny import Compute, graph_of, normal

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Recorder(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, graph: Graph):
        super().__init__(graph.module, garbage_collect_values=False)
        with torch.no_grad():
            self.run(*graph.example.values())


def only_site(graph: Graph) -> WeightSite:
    [site] = graph.sites
    return site


def conv1d_like(m: int, d: int) -> nn.Module:
    """GPT-2's Conv1D: the weight stored as (d, m), the rows flattened for one addmm."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, d), self.weight).view(*x.shape[:-1], m)

    return Compute(forward, weight=normal(d, m), bias=torch.zeros(m))


def conv(rank, *arguments, **options):
    return {1: nn.Conv1d, 2: nn.Conv2d}[rank](*arguments, bias=False, **options)


CONTRACTIONS = {
    "linear": (nn.Linear(6, 4, bias=False), normal(5, 6)),
    "linear on three axes": (nn.Linear(6, 4, bias=False), normal(2, 3, 6)),
    "Conv1D of GPT-2": (conv1d_like(4, 6), normal(2, 3, 6)),
    "x @ W": (Compute(lambda self, x: x @ self.weight, weight=normal(6, 4)), normal(5, 6)),
    "x @ W.T": (Compute(lambda self, x: x @ self.weight.T, weight=normal(4, 6)), normal(5, 6)),
    "x @ W.mT": (Compute(lambda self, x: x @ self.weight.mT, weight=normal(4, 6)), normal(2, 5, 6)),
    "linear on W.T": (Compute(lambda self, x: F.linear(x, self.weight.T), weight=normal(6, 4)), normal(5, 6)),
    "mm": (Compute(lambda self, x: torch.mm(x, self.weight), weight=normal(6, 4)), normal(5, 6)),
    "conv1d": (conv(1, 6, 4, 3), normal(2, 6, 8)),
    "conv1d, stride and dilation": (conv(1, 6, 4, 3, stride=2, dilation=2, padding=1), normal(2, 6, 9)),
    "conv2d": (conv(2, 6, 4, 3), normal(2, 6, 5, 7)),
    "conv2d, one by one": (conv(2, 6, 4, 1), normal(2, 6, 5, 7)),
    "conv2d, oblong": (conv(2, 6, 4, (2, 3), padding=(1, 0), stride=(1, 2)), normal(2, 6, 5, 7)),
    "conv2d, dilated": (conv(2, 6, 4, 3, dilation=(1, 2), padding=2), normal(2, 6, 7, 7)),
    "conv2d, same": (conv(2, 6, 4, 3, padding="same"), normal(2, 6, 5, 7)),
    "conv2d, same and even": (conv(2, 6, 4, (4, 2), padding="same"), normal(2, 6, 5, 7)),
    "conv2d, valid": (conv(2, 6, 4, 3, padding="valid"), normal(2, 6, 5, 7)),
    "conv2d, grouped": (conv(2, 6, 4, 3, groups=2, padding=1), normal(2, 6, 5, 7)),
    "conv2d, depthwise": (conv(2, 6, 12, 3, groups=6), normal(2, 6, 5, 7)),
}


@pytest.fixture(params=list(CONTRACTIONS.values()), ids=list(CONTRACTIONS))
def graph(request):
    return graph_of(*request.param)


def expected_rows(site: WeightSite, out: Tensor) -> Tensor:
    """The operator's output as (groups, n, m / groups)."""
    if site.layout == "kernel":
        out = out.movedim(1, -1)
    return out.reshape(-1, site.groups, site.m // site.groups).movedim(1, 0)


def test_columns_times_the_matrix_is_what_the_operator_computes(graph):
    site = only_site(graph)
    [use] = site.uses
    values = Recorder(graph).env
    X = site.columns(use, values[use.activation])  # (groups, n, d)
    assert X.shape == (site.groups, site.n_positions(use, values[use.activation]), site.d)
    torch.testing.assert_close(X @ site.matrix().mT, expected_rows(site, values[use.node]))


def test_some_positions_are_rows_of_all_of_them():
    graph = graph_of(conv(2, 6, 4, 3, groups=2, stride=2, padding=1), normal(2, 6, 5, 7))
    site = only_site(graph)
    [use] = site.uses
    x = graph.example["x0"]
    some = torch.tensor([7, 0, 23])
    assert torch.equal(site.columns(use, x, some), site.columns(use, x)[:, some])


def test_what_is_written_is_read_and_the_operator_uses_it(graph):
    site = only_site(graph)
    W = site.matrix()
    W_new = normal(*W.shape, seed=1)
    site.write(W_new)
    assert torch.equal(site.matrix(), W_new)
    [use] = site.uses
    values = Recorder(graph).env
    X = site.columns(use, values[use.activation])
    torch.testing.assert_close(X @ W_new.mT, expected_rows(site, values[use.node]))
    site.write(W)


def test_a_matrix_is_a_copy(graph):
    site = only_site(graph)
    before = site.weight.clone()
    site.matrix().zero_()
    assert torch.equal(site.weight, before)


@pytest.mark.parametrize(
    ("name", "layout", "op", "axis", "shape", "matrix"),
    [
        ("linear", "rows", "linear.default", 1, (4, 6), (1, 4, 6)),
        ("Conv1D of GPT-2", "columns", "addmm.default", 0, (6, 4), (1, 4, 6)),
        ("x @ W", "columns", "matmul.default", 0, (6, 4), (1, 4, 6)),
        ("x @ W.T", "rows", "matmul.default", 1, (4, 6), (1, 4, 6)),
        ("linear on W.T", "columns", "linear.default", 0, (6, 4), (1, 4, 6)),
        ("conv1d", "kernel", "conv1d.default", 1, (4, 6, 3), (1, 4, 18)),
        ("conv2d, same", "kernel", "conv2d.padding", 1, (4, 6, 3, 3), (1, 4, 54)),
        ("conv2d, grouped", "kernel", "conv2d.default", 1, (4, 3, 3, 3), (2, 2, 27)),
        ("conv2d, depthwise", "kernel", "conv2d.default", 1, (12, 1, 3, 3), (6, 2, 9)),
    ],
)
def test_a_site_tells_how_its_weight_is_contracted(name, layout, op, axis, shape, matrix):
    site = only_site(graph_of(*CONTRACTIONS[name]))
    assert (site.name, site.layout, site.op, site.axis) == ("weight", layout, op, axis)
    assert site.shape == shape
    assert shape[axis] == site.K
    assert tuple(site.matrix().shape) == (site.groups, site.m // site.groups, site.d) == matrix
    assert (site.other_users, site.conflict) == ((), "")


def test_columns_of_a_convolution_lie_along_the_input_channels():
    weight = torch.arange(2 * 4 * 3 * 3.0).reshape(2, 4, 3, 3)
    graph = graph_of(Compute(lambda self, x: F.conv2d(x, self.weight), weight=weight), normal(2, 4, 5, 5))
    W = only_site(graph).matrix()
    assert W[0, 0, :4].tolist() == weight[0, :, 0, 0].tolist()
    assert W[0, 0, 4:8].tolist() == weight[0, :, 0, 1].tolist()


@given(
    layout=st.sampled_from(["rows", "columns", "kernel"]),
    groups=st.integers(1, 3),
    m=st.integers(1, 4),
    K=st.integers(1, 5),
    kernel=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_a_matrix_written_back_changes_nothing(layout, groups, m, K, kernel, dtype):
    shape = {"rows": (m, K), "columns": (K, m), "kernel": (groups * m, K, *kernel)}[layout]
    weight = normal(*shape).to(dtype)
    site = WeightSite("w", "op", weight.clone(), layout, (), groups if layout == "kernel" else 1)
    assert site.matrix().dtype == torch.float32
    site.write(site.matrix())
    assert torch.equal(site.weight, weight)


# *** which weights are sites ***


def test_a_weight_used_twice_is_one_site_with_two_uses():
    model = Compute(lambda self, x: self.fc(torch.relu(self.fc(x))), fc=nn.Linear(4, 4))
    site = only_site(graph_of(model, normal(3, 4)))
    assert site.name == "fc.weight"
    assert len(site.uses) == 2
    assert not site.conflict


def test_a_weight_contracted_along_two_axes_is_a_conflict():
    model = Compute(lambda self, x: torch.relu(x @ self.weight) @ self.weight.T, weight=normal(6, 6))
    assert only_site(graph_of(model, normal(3, 6))).conflict == (
        "shared by consumers that contract it along different axes"
    )


def test_a_head_tied_to_an_embedding_is_one_decision_with_its_other_reader():
    model = Compute(
        lambda self, ids: self.head(self.fc(self.embed(ids))),
        embed=nn.Embedding(9, 4),
        fc=nn.Linear(4, 4),
        head=nn.Linear(4, 9),
    )
    model.head.weight = model.embed.weight
    graph = graph_of(model, torch.arange(6).reshape(2, 3))
    fc, head = graph.sites
    assert (fc.name, fc.role) == ("fc.weight", "")
    assert (head.role, head.other_users) == ("tied", ("embedding.default",))
    assert head.weight is model.embed.weight
    assert not graph.orphans


def test_the_first_convolution_is_the_stem_and_the_last_site_is_the_head():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    roles = {site.name: site.role for site in graph_of(model, normal(2, 3, 5, 5)).sites}
    assert roles == {"0.weight": "stem", "2.weight": "", "4.weight": "head"}


def test_a_first_linear_is_no_stem():
    roles = [site.role for site in graph_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), normal(3, 4)).sites]
    assert roles == ["", "head"]


def test_every_branch_that_reads_the_input_is_a_stem_and_every_one_that_makes_the_output_a_head():
    model = Compute(
        lambda self, x: self.d(F.relu(self.a(x)).mean((2, 3))) + self.e(F.relu(self.b(x)).mean((2, 3))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(3, 4, 1),
        d=nn.Linear(4, 2),
        e=nn.Linear(4, 2),
    )
    roles = {site.name[0]: site.role for site in graph_of(model, normal(2, 3, 5, 5)).sites}
    assert roles == {"a": "stem", "b": "stem", "d": "head", "e": "head"}


def test_a_fixed_matrix_is_no_weight():
    model = Compute(lambda self, x: self.fc(x @ self.basis), fc=nn.Linear(4, 2))
    model.register_buffer("basis", normal(4, 4))
    graph = graph_of(model, normal(3, 4))
    assert [site.name for site in graph.sites] == ["fc.weight"]
    assert not graph.orphans


def test_a_transpose_that_swaps_nothing_is_none():
    model = Compute(lambda self, x: x @ self.weight.permute(0, 1), weight=normal(6, 4))
    assert only_site(graph_of(model, normal(3, 6))).layout == "columns"


def test_a_product_of_two_weights_is_no_site():
    model = Compute(lambda self, x: x + self.a @ self.b, a=normal(4, 6), b=normal(6, 4))
    graph = graph_of(model, normal(4, 4), dynamic=[{}])
    assert not graph.sites
    assert [orphan.name for orphan in graph.orphans] == ["a", "b"]


UNKNOWN = "which is not a contraction this compiler knows"

ORPHANS = {
    "embedding": (nn.Embedding(9, 4), torch.arange(6), "looked up, not contracted", False),
    "unused": (Compute(lambda self, x: x + 1, weight=normal(4, 6)), normal(3, 6), "read by nothing", False),
    "added": (
        Compute(lambda self, x: x + self.weight, weight=normal(3, 6)),
        normal(3, 6),
        "read by add.Tensor: not contracted",
        False,
    ),
    "added and normalised": (
        Compute(lambda self, x: F.layer_norm(x + self.weight, (6,)), weight=normal(3, 6)),
        normal(3, 6),
        "read by add.Tensor: not contracted",
        False,
    ),
    "masked": (
        Compute(lambda self, x: F.linear(x, (self.weight * self.mask).T), weight=normal(6, 4), mask=torch.ones(4)),
        normal(3, 6),
        "changed by mul.Tensor before linear.default contracts it",
        True,
    ),
    "normalised": (
        Compute(lambda self, x: F.linear(x, self.weight / self.weight.norm()), weight=normal(4, 6)),
        normal(3, 6),
        f"read by div.Tensor, linalg_vector_norm.default, {UNKNOWN}",
        True,
    ),
    "transposed convolution": (
        nn.ConvTranspose2d(3, 4, 3),
        normal(2, 3, 5, 5),
        f"read by conv_transpose2d.input, {UNKNOWN}",
        True,
    ),
    "transposed kernel": (
        Compute(lambda self, x: F.conv2d(x, self.weight.transpose(0, 1)), weight=normal(3, 4, 1, 1)),
        normal(2, 3, 5, 5),
        f"read by conv2d.default, {UNKNOWN}",
        True,
    ),
    "weight first": (
        Compute(lambda self, x: self.weight @ x, weight=normal(4, 6)),
        normal(6, 3),
        f"read by matmul.default, {UNKNOWN}",
        True,
    ),
    "batched": (
        Compute(lambda self, x: x @ self.weight, weight=normal(2, 6, 4)),
        normal(2, 3, 6),
        f"read by matmul.default, {UNKNOWN}",
        True,
    ),
}


@pytest.mark.parametrize(("model", "x", "reason", "is_refused"), ORPHANS.values(), ids=ORPHANS.keys())
def test_a_weight_that_is_no_site_is_an_orphan_with_the_reason(model, x, reason, is_refused):
    graph = graph_of(model, x, dynamic=[{}])
    assert not graph.sites
    [orphan] = graph.orphans
    assert (orphan.name, orphan.reason, orphan.is_refused) == ("weight", reason, is_refused)


def test_biases_and_norms_are_neither_sites_nor_orphans():
    graph = graph_of(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), normal(3, 4))
    assert [site.name for site in graph.sites] == ["0.weight"]
    assert not graph.orphans


def test_a_convolution_of_one_image_without_a_batch_axis_has_columns_too():
    graph = graph_of(conv(2, 6, 4, 3), normal(6, 5, 7), dynamic=[{}])
    site = only_site(graph)
    [use] = site.uses
    values = Recorder(graph).env
    X = site.columns(use, values[use.activation])
    assert X.shape[1] == site.n_positions(use, values[use.activation])
    torch.testing.assert_close(X @ site.matrix().mT, values[use.node].movedim(0, -1).reshape(1, -1, 4))
