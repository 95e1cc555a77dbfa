import gc
import re
import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.contractions import SITE, Contraction, contractions
from compressor.errors import BackendError
from compressor.graph import Graph
from compressor.onnx_file import DATA_FILE, MODEL_FILE, read, save, to_onnx
from compressor.registry import load
from tests.compressor.tiny import Compute, graph_of, normal

TEXT = {0: "batch", 1: "sequence"}


def parsed(nodes: str, x: str, **weights: tuple[int, ...]) -> ir.Model:
    """A model in ONNX's text form; weights hold 0, 1, 2, ..."""
    held = ", ".join(
        f"float[{', '.join(map(str, shape))}] {name} = {{{', '.join(str(i) for i in range(np.prod(shape)))}}}"
        for name, shape in weights.items()
    )
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[{x}] x) => (y) <{held}> {{ {nodes} }}'
    return ir.from_proto(onnx.parser.parse_model(text))


def written(graph: Graph, folder: Path) -> ir.Model:
    save(to_onnx(graph), folder)
    return read(folder / MODEL_FILE)


def only(model: ir.Model) -> Contraction:
    [one] = contractions(model)
    return one


# *** which axis a runtime contracts ***


@pytest.mark.parametrize(
    ("nodes", "x", "shape", "axis"),
    [
        ("y = MatMul(x, w)", "N, 6", (6, 4), -2),
        ("y = MatMul(x, w)", "B, S, 6", (6, 4), -2),
        ("y = MatMul(w, x)", "6, N", (4, 6), -1),
        ("y = Gemm(x, w)", "N, 6", (6, 4), 0),
        ("y = Gemm<transB=1>(x, w)", "N, 6", (4, 6), 1),
        ("y = Gemm<transA=1>(x, w)", "6, N", (6, 4), 0),
        ("y = Gemm(w, x)", "6, N", (4, 6), 1),
        ("y = Gemm<transA=1>(w, x)", "6, N", (6, 4), 0),
        ("y = Conv(x, w)", "N, 6, 5", (4, 6, 3), 1),
        ("y = Conv(x, w)", "N, 6, 5, 5", (4, 6, 3, 3), 1),
        ("y = Conv<group=2>(x, w)", "N, 6, 5, 5", (4, 3, 3, 3), 1),
        ("t = Transpose<perm=[1, 0]>(w)  y = MatMul(x, t)", "N, 6", (4, 6), 1),
        ("t = Transpose(w)  y = MatMul(x, t)", "N, 6", (4, 6), 1),
        ("t = Transpose<perm=[0, 1]>(w)  y = MatMul(x, t)", "N, 6", (6, 4), 0),
        ("t = Transpose<perm=[1, 0]>(w)  y = Gemm<transB=1>(x, t)", "N, 6", (6, 4), 0),
        ("t = Transpose<perm=[1, 0, 2]>(w)  y = Conv(x, t)", "N, 6, 5", (6, 4, 3), 0),
    ],
)
def test_the_contracted_axis_is_the_operators(nodes, x, shape, axis):
    found = only(parsed(nodes, x, w=shape))
    assert found.axis == axis
    assert (found.site, found.op) == ("w", nodes.split("y = ")[1].split("(")[0].split("<")[0])
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert np.array_equal(found.along_last(), np.moveaxis(values, axis, -1))
    assert 6 // (2 if "group" in nodes else 1) == found.along_last().shape[-1]


@pytest.mark.parametrize(
    ("nodes", "x"),
    [
        ("y = MatMul(x, x)", "6, 6"),
        ("y = Add(x, w)", "6, 6"),
        ("t = Relu(w)  y = MatMul(x, t)", "6, 6"),
    ],
)
def test_what_multiplies_no_stored_weight_is_no_contraction(nodes, x):
    assert not list(contractions(parsed(nodes, x, w=(6, 6))))


def test_a_stamp_names_the_weight_whatever_it_is_called():
    model = parsed("y = MatMul(x, w)", "N, 6", w=(6, 4))
    next(iter(model.graph)).metadata_props[SITE] = "h.0.weight"
    assert only(model).site == "h.0.weight"


# *** from graph to file ***


def conv1d_of_gpt2() -> nn.Module:
    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 6), self.weight).view(*x.shape[:-1], 4)

    return Compute(forward, weight=normal(6, 4), bias=normal(4))


MODELS = {
    "linear": (nn.Linear(6, 4), normal(5, 6)),
    "linear on three axes": (nn.Linear(6, 4), normal(2, 3, 6)),
    "Conv1D of GPT-2": (conv1d_of_gpt2(), normal(2, 3, 6)),
    "x @ W": (Compute(lambda self, x: x @ self.weight, weight=normal(6, 4)), normal(2, 3, 6)),
    "x @ W.T": (Compute(lambda self, x: x @ self.weight.T, weight=normal(4, 6)), normal(2, 3, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1), normal(2, 6, 5)),
    "conv2d": (nn.Conv2d(6, 4, 3, padding="same", bias=False), normal(2, 6, 5, 5)),
    "conv2d, grouped": (nn.Conv2d(6, 4, 3, groups=2), normal(2, 6, 5, 5)),
}


@pytest.mark.parametrize(("model", "x"), MODELS.values(), ids=MODELS.keys())
def test_a_weight_is_found_in_the_written_file_as_the_site_holds_it(model, x, tmp_path):
    graph = graph_of(model, x)
    [site] = graph.sites
    found = only(written(graph, tmp_path))
    assert found.site == site.name
    expected = site.weight.detach().movedim(site.axis, -1).numpy()
    assert np.array_equal(found.along_last(), expected)


class Net(nn.Module):
    """Convolutions with BatchNorm, worked in place, and a head on what they found."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        for bn in (self.bn1, self.bn2):
            bn.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            bn.running_mean.normal_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(x))
        y += x
        return self.fc(F.relu(y, inplace=True).mean((2, 3)))


def test_batchnorm_folds_into_its_convolution_and_neither_name_nor_zeros_are_lost(tmp_path):
    graph = graph_of(Net(), normal(2, 3, 5, 5))
    for site in graph.sites:
        W = site.matrix()
        W[..., ::2] = 0
        site.write(W)
    model = written(graph, tmp_path)
    assert "BatchNormalization" not in {node.op_type for node in model.graph}
    found = {one.site: one for one in contractions(model)}
    assert list(found) == ["conv1.weight", "conv2.weight", "fc.weight"]
    for site in graph.sites:
        zeros = site.weight.detach().movedim(site.axis, -1).numpy() == 0
        assert np.array_equal(found[site.name].along_last() == 0, zeros)


def tied() -> Graph:
    """Two blocks and a head that is the embedding, with tokens of any number and length."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in (self.a, self.b):
            x = x + block(F.layer_norm(x, (8,)))
        return F.linear(x, self.embed.weight)

    torch.manual_seed(2)
    blocks = {name: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for name in "ab"}
    model = Compute(forward, embed=nn.Embedding(11, 8), **blocks)
    return graph_of(model, torch.arange(10).reshape(2, 5), dynamic=[TEXT])


def test_every_site_is_stamped_once_and_a_tied_head_too(tmp_path):
    graph = tied()
    found = [one.site for one in contractions(written(graph, tmp_path))]
    assert sorted(found) == sorted(site.name for site in graph.sites)
    assert "embed.weight" in found


def test_a_convolution_whose_kernel_is_computed_is_no_site(tmp_path):
    graph = graph_of(Compute(lambda self, x: F.conv2d(x, x[:1, :, :3, :3])), normal(2, 6, 5, 5))
    model = written(graph, tmp_path)
    assert "Conv" in {node.op_type for node in model.graph}
    assert not [node for node in model.graph if SITE in node.metadata_props]


def test_every_weight_carries_its_sites_name_where_no_other_does(tmp_path):
    held = set(written(tied(), tmp_path).graph.initializers)
    assert {"a.0.weight", "a.2.weight", "b.0.weight", "b.2.weight", "embed.weight"} <= held


def test_the_written_file_computes_what_the_graph_does_at_other_sizes(tmp_path):
    graph = tied()
    written(graph, tmp_path)
    feeds = {"x0": torch.arange(21).reshape(3, 7) % 11}
    found = load("backends", "onnxruntime")().open(tmp_path, threads=1)(feeds)
    torch.testing.assert_close(found["y"], graph.run(feeds)["y"], rtol=1e-5, atol=1e-5)


def test_inputs_and_outputs_carry_our_names_and_axes(tmp_path):
    model = written(tied(), tmp_path)
    axes = {
        value.name: [str(size) for size in value.shape or ()] for value in (*model.graph.inputs, *model.graph.outputs)
    }
    assert axes == {"x0": ["batch", "sequence"], "y": ["batch", "sequence", "11"]}


def test_no_axis_between_is_called_by_torchs_symbols(tmp_path):
    model = written(tied(), tmp_path)
    sizes = {str(size) for node in model.graph for value in node.outputs if value.shape for size in value.shape}
    assert not [size for size in sizes if re.search(r"\bs\d+\b", size)]


def test_the_file_tells_nothing_of_the_machine_it_was_written_on(tmp_path):
    written(tied(), tmp_path)
    held = (tmp_path / MODEL_FILE).read_bytes()
    for trace in (str(Path.cwd()), str(tmp_path), "site-packages", ".py", "0x", "lambda", "Compute", "File "):
        assert trace.encode() not in held, trace


def test_the_same_graph_is_written_as_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        written(tied(), tmp_path / name)
    for file in (MODEL_FILE, DATA_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_graph_is_translated_once_and_again_when_a_pass_has_restructured_it(tmp_path, monkeypatch):
    calls = []
    translate = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: calls.append(1) or translate(*args, **options))
    graph = graph_of(nn.Sequential(nn.Conv1d(4, 4, 3, bias=False), nn.BatchNorm1d(4)), normal(3, 4, 8))
    [site] = graph.sites
    for value in (1.0, 2.0):
        site.weight.data.fill_(value)
        assert np.allclose(only(written(graph, tmp_path)).along_last(), value, rtol=1e-4)
    assert len(calls) == 1
    graph.restructured()
    written(graph, tmp_path)
    assert len(calls) == 2


def test_a_translation_goes_with_its_graph():
    graph = graph_of(nn.Linear(4, 4), normal(3, 4))
    to_onnx(graph)
    program = weakref.ref(graph.program())
    del graph
    gc.collect()
    assert program() is None


def test_writing_leaves_the_graph_as_it_was(tmp_path):
    graph = tied()
    text, weights = graph.text(), [site.weight.clone() for site in graph.sites]
    written(graph, tmp_path)
    assert graph.text() == text
    assert all(torch.equal(site.weight, before) for site, before in zip(graph.sites, weights, strict=True))


def test_a_graph_that_a_pass_has_restructured_is_written_as_it_stands(tmp_path):
    graph = graph_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), normal(3, 4))
    [relu] = [node for node in graph.module.graph.nodes if node.target is torch.ops.aten.relu.default]
    relu.replace_all_uses_with(relu.args[0])
    graph.module.graph.erase_node(relu)
    graph.restructured()
    model = written(graph, tmp_path)
    assert [node.op_type for node in model.graph] == ["Gemm", "Gemm"]
    assert [one.site for one in contractions(model)] == ["0.weight", "2.weight"]


def test_a_model_without_weights_is_two_files_too(tmp_path):
    model = written(graph_of(Compute(lambda self, x: x + x), normal(3, 4)), tmp_path)
    assert not list(contractions(model))
    assert (tmp_path / DATA_FILE).read_bytes() == b""


# *** files that are not whole ***


def test_a_file_that_is_no_onnx_is_refused_by_name(tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(b"\x00garbage")
    with pytest.raises(BackendError, match=r"cannot read model\.onnx as ONNX"):
        read(tmp_path / MODEL_FILE)


@pytest.mark.parametrize("size", [None, 100], ids=["missing", "cut short"])
def test_weights_that_are_not_there_are_refused_by_name(tmp_path, size):
    save(to_onnx(graph_of(nn.Linear(64, 64), normal(3, 64))), tmp_path)
    data = tmp_path / DATA_FILE
    held = data.read_bytes()
    data.unlink()
    if size:
        data.write_bytes(held[:size])
    with pytest.raises(BackendError, match="cannot read the weight weight"):
        only(read(tmp_path / MODEL_FILE)).along_last()
