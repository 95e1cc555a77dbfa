"""Quantized weights as ONNX Runtime runs them: they compute what torch computes, and the codes hold the zeros."""

import copy

import pytest
import torch
from torch import nn

from compressor import driver, onnx_file
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.backends.tensorrt import TensorRT
from compressor.commands.inspection import inspect
from compressor.contractions import packed, unpacked
from compressor.errors import BackendError, DataError, RecipeError
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.proof.parity import difference
from compressor.proof.unquantized import in_floats
from compressor.recipe import Recipe
from compressor.rounded import unrounded
from tests.compressor.tiny import Compute, graph_of, normal

backend = OnnxRuntime()
KINDS = {
    "int8": "quantize{kind=int8,sweeps=0}",
    "int8-dynamic": "quantize{kind=int8-dynamic,sweeps=0}",
    "int4": "quantize{kind=int4,sweeps=0,group=16}",
}
EMBEDDING = Compute(
    lambda self, x: self.l(self.e(x[:, 0].long().abs() % 64)) @ self.e.weight.T, e=nn.Embedding(64, 32),
    l=nn.Linear(32, 32),
)  # fmt: skip
UNTIED = Compute(lambda self, x: self.l(self.e(x[:, 0].long().abs() % 64)), e=nn.Embedding(64, 32), l=nn.Linear(32, 8))
MODELS = {
    "a Gemm": nn.Linear(32, 8),
    "a MatMul": Compute(lambda self, x: x @ self.weight, weight=normal(32, 8)),
    "a stack": Compute(lambda self, x: self.l(x.unflatten(1, (2, 16))).sum(1), l=nn.Linear(16, 8, bias=False)),
    "two readers": Compute(lambda self, x: self.a(x) * self.b(x), a=nn.Linear(32, 8), b=nn.Linear(32, 8)),
}


def built(model: nn.Module, text: str, folder):
    graph = graph_of(model, normal(4, 32))
    quantize(graph, text)
    backend.build(graph, folder)
    return graph


def quantize(graph, *passes):
    torch.manual_seed(0)
    batches = [graph.example] + [{"x0": torch.randn_like(graph.example["x0"])} for _ in range(4)]
    context = Context(lambda n: batches, kernels=backend.quantizes)
    return run_pipeline(graph, [parse_pass(one) for one in passes], context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_the_artifact_computes_what_torch_computes(name, kind, tmp_path):
    graph = built(MODELS[name], KINDS[kind], tmp_path)
    for rows in (1, 7):
        assert (
            difference(graph.run, backend.open(tmp_path, 1), {"x0": normal(rows, 32, seed=rows)}) < 5e-4
        )  # a step of a code is 8e-3
    model = onnx_file.read(tmp_path / "model.onnx")
    assert "RoundActivation" not in {node.op_type for node in model.graph}
    assert not any(found.floats for found in backend.stored(tmp_path).values())


@pytest.mark.parametrize("net", [EMBEDDING, UNTIED], ids=["tied", "untied"])
def test_four_bits_in_half_precision_have_the_codes_of_single_and_compute_what_torch_computes(net, tmp_path):
    text = KINDS["int4"].replace("}", ",embeddings=true}")
    graph, half = (
        graph_of(copy.deepcopy(net).to(kind), normal(4, 32).to(kind)) for kind in (torch.float32, torch.float16)
    )
    quantize(graph, text)
    graph.repeat_on(half)
    backend.build(half, tmp_path)
    stored = backend.stored(tmp_path)
    assert {name: (found.dtype, found.scale.dtype) for name, found in stored.items()} == {
        "e.weight": ("int8", torch.float16), "l.weight": ("int4", torch.float16),
    }  # fmt: skip
    assert all(torch.equal(found.W, graph.codes(name)[0]) for name, found in stored.items())
    assert difference(half.run, backend.open(tmp_path, 1), {"x0": (9 * normal(5, 32)).half()}) < 2e-2
    large = [
        x
        for x in onnx_file.read(tmp_path / "model.onnx").graph.initializers.values()
        if x.const_value.nbytes >= 64 * 32
    ]
    assert [x.name for x in large] == ["e.weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_codes_and_roundings_it_computes_what_torch_does_without_them(kind, tmp_path):
    graph = built(MODELS["two readers"], KINDS[kind], tmp_path)
    backend.build(in_floats(graph), tmp_path)
    assert {found.dtype for found in backend.stored(tmp_path).values()} == {"float32"}
    feeds = {"x0": normal(7, 32, seed=7)}
    assert (
        difference(unrounded(graph), backend.open(tmp_path, 1), feeds)
        < 1e-5
        < difference(unrounded(graph), graph.run, feeds)
    )
    assert graph.points
    assert graph.grids


@pytest.mark.parametrize("kind", KINDS)
def test_the_codes_are_read_back_with_their_type_and_scale(kind, tmp_path):
    graph = built(nn.Linear(32, 8), KINDS[kind], tmp_path)
    [(name, found)] = backend.stored(tmp_path).items()
    codes = graph.grids["weight"].codes(graph.sites[0].matrix())[0]
    assert (name, found.dtype) == ("weight", kind.partition("-")[0])
    assert torch.equal(found.W, codes)
    assert torch.equal(found.scale.flatten(), graph.grids["weight"].scale.flatten())


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic"])
def test_a_tied_weight_is_stored_once_for_the_embedding_and_the_head(kind, tmp_path):
    text = f"quantize{{kind={kind},sweeps=0,embeddings=true}}"
    graph = built(EMBEDDING, text, tmp_path)
    assert (
        difference(graph.run, backend.open(tmp_path, 1), {"x0": 9 * normal(5, 32)}) < 1e-2
    )  # a code may fall either way
    model = onnx_file.read(tmp_path / "model.onnx")
    large = [x for x in model.graph.initializers.values() if x.const_value.size >= 64 * 32]
    assert [(x.name, x.const_value.dtype.name) for x in large] == [("e.weight", "INT8")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_that_no_head_shares_is_looked_up_in_codes(kind, tmp_path):
    graph = built(UNTIED, KINDS[kind].replace("}", ",embeddings=true}"), tmp_path)
    assert difference(graph.run, backend.open(tmp_path, 1), {"x0": 9 * normal(5, 32)}) < 1e-2
    found = backend.stored(tmp_path)["e.weight"]
    assert (found.dtype, found.where, found.W.shape) == ("int8", "Gather axis 0", (64, 32))
    assert found.W.abs().amax(1).eq(127).all()  # each row has a scale of its own
    rows = found.W * found.scale[:, None]
    assert torch.equal(rows, graph.module.e.weight)
    large = [x for x in onnx_file.read(tmp_path / "model.onnx").graph.initializers.values() if x.name == "e.weight"]
    assert [x.const_value.dtype.name for x in large] == ["INT8"]


def test_an_embedding_for_tensorrt_is_looked_up_in_floats_made_of_codes(tmp_path):
    graph, tensorrt = graph_of(UNTIED, normal(4, 32)), TensorRT()
    context = Context(lambda n: [{"x0": 9 * normal(8, 32, seed=seed)} for seed in range(4)], kernels=tensorrt.quantizes)
    run_pipeline(graph, [parse_pass("quantize{kind=int8,sweeps=0,embeddings=true}")], context)
    tensorrt.build(graph, tmp_path)
    assert {name: found.dtype for name, found in tensorrt.stored(tmp_path).items()} == {
        "e.weight": "int8", "l.weight": "int8",
    }  # fmt: skip
    assert difference(graph.run, OnnxRuntime(exact=True).open(tmp_path, 1), {"x0": 9 * normal(5, 32)}) < 1e-2


def test_an_embedding_stays_in_floats_unless_asked_for_or_when_ignored(tmp_path):
    for more in ("", ",embeddings=true,ignore=[e]"):
        graph = graph_of(UNTIED, normal(4, 32))
        quantize(graph, KINDS["int8-dynamic"].replace("}", more + "}"))
        assert set(graph.grids) == {"l.weight"}


def test_a_stamp_of_zeros_survives_in_the_codes(tmp_path):
    graph = graph_of(nn.Linear(32, 8), normal(4, 32))
    passes = ["sparsify{pattern=2:4,method=magnitude,refit=0,targets=[weight]}", KINDS["int4"]]
    run_pipeline(graph, [parse_pass(one) for one in passes], Context())
    backend.build(graph, tmp_path)
    [site] = inspect(tmp_path).sites
    assert (site.dtype, site.found, site.shape, site.where) == ("int4", "2:4", (8, 32), "MatMulNBits axis 1")


def test_four_bit_codes_pack_and_unpack():
    codes = torch.randint(-7, 8, (3, 64), generator=torch.Generator().manual_seed(0)).numpy()
    assert packed(codes, 32).shape == (3, 2, 16)
    assert (unpacked(packed(codes, 32)) == codes).all()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("backend=tensorrt} | quantize{kind=int4}", "has no int4 kernels"),
        ("dtype=bfloat16,backend=tensorrt} | quantize{kind=int8}", "no kernels that make bfloat16 of int8 codes"),
        ("dtype=float16} | quantize{kind=int8}", "no kernels that make float16 of int8 codes"),
        ("dtype=float16} | quantize{kind=int8-dynamic}", "no kernels that make float16 of int8-dynamic codes"),
    ],
)
def test_a_runtime_without_kernels_refuses_before_anything_is_done(settings, found, tmp_path):
    with pytest.raises(BackendError, match=found):
        driver.export(None, f"export{{model=tiny-gpt2,{settings}", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        ("export{backend=tensorrt} | quantize{kind=int8}", "float16"),
        ("export{backend=tensorrt,dtype=float32} | quantize{kind=int8}", "float32"),
        ("export | quantize{kind=int8}", "float32"),
        ("export{dtype=float16} | quantize{kind=int4}", "float16"),
    ],
)
def test_all_but_the_codes_is_what_the_kernels_make_of_them(recipe, dtype):
    recipe = Recipe.parse(recipe)
    assert driver.settle(recipe, driver.open_backend(recipe)).dtype == dtype


def test_what_would_move_weights_off_their_grids_comes_first(tmp_path):
    with pytest.raises(RecipeError, match="sparsify after quantize would move weights off their grids"):
        driver.export(None, "export{model=tiny-gpt2} | quantize{kind=int4} | sparsify{pattern=2:4}", output=tmp_path)
    recipe = Recipe().with_pass("quantize", {"kind": "int4"}).with_pass("sparsify", {"pattern": "2:4"})
    assert [one.name for one in recipe.passes] == ["sparsify", "quantize"]


def test_an_export_proves_its_codes(tmp_path, quick):
    sparsify = "sparsify{pattern=2:4,method=magnitude,refit=0}"
    quantize = "quantize{kind=int4,samples=8,embeddings=true}"
    recipe = f"export{{model=tiny-gpt2,samples=8}} | {sparsify} | {quantize}"
    report = driver.export(None, recipe, output=tmp_path / "out")
    assert report, report.promises
    assert [one.name for one in report.promises][1] == "the written file holds the codes and the pattern"
    assert {site.dtype for site in report.sites if site.status == "changed"} == {"int4", "int8"}
    assert {site.found for site in report.sites if site.dtype == "int4"} == {"2:4"}
    [positions] = [site for site in report.sites if site.name == "transformer.wpe.weight"]
    assert (positions.status, positions.dtype, positions.holds) == ("changed", "int8", True)
    assert report.sizes.artifact_bytes < 0.3 * report.sizes.dense_bytes
    assert {whose for row in report.latency for whose in row.latency} == {"dense", "artifact", "not quantized"}


def test_no_sum_of_two_products_leaves_sixteen_bits(tmp_path):
    """Large weights of one sign meet large activations: kernels without VNNI cut codes of +-127 off here."""
    model = Compute(lambda self, x: x @ self.weight, weight=1 + 0.01 * normal(64, 8))
    graph = graph_of(model, 1 + 0.01 * normal(4, 64))
    run_pipeline(graph, [parse_pass(KINDS["int8-dynamic"])], Context())
    backend.build(graph, tmp_path)
    assert difference(graph.run, backend.open(tmp_path, 1), {"x0": 1 + 0.01 * normal(4, 64, seed=1)}) < 1e-5
    assert graph.grids["weight"].codes(graph.sites[0].matrix()).abs().max() > 60


# *** static: convolutions ***


class Residual(nn.Module):
    """A stem, a block with a shortcut, pooling and a head, its normalizations with factors of either sign."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        for norm in self.norms:
            nn.init.uniform_(norm.weight, -1, 1)
            nn.init.normal_(norm.running_mean)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        first, second, third = self.norms
        x = torch.max_pool2d(torch.relu(first(self.stem(x))), 3, 2, 1)
        x = torch.relu(third(self.b(torch.relu(second(self.a(x))))) + x)
        return self.head(x.mean((2, 3)))


def test_convolutions_run_on_codes_from_end_to_end(tmp_path):
    graph = graph_of(Residual(), normal(2, 3, 17, 17))
    x = {"x0": normal(3, 3, 17, 17, seed=8)}
    dense = graph.run(x)["y"]
    [outcome] = quantize(graph, KINDS["int8"])
    assert len(outcome.of("changed")) == 4
    assert (graph.run(x)["y"] - dense).abs().max() < 0.05 * dense.abs().max()
    backend.build(graph, tmp_path)
    assert difference(graph.run, backend.open(tmp_path, 1), x) < 2e-2
    found = backend.stored(tmp_path)
    assert [(one.where, one.dtype, one.floats) for one in found.values()] == [
        *[("Conv axis 1", "int8", False)] * 3, ("Gemm axis 1", "int8", False)
    ]  # fmt: skip


def test_codes_that_are_multiplied_as_floats_are_told(tmp_path):
    """ONNX Runtime makes a Gemm of MatMul and Add on matrices before it looks for codes."""
    model = Compute(lambda self, x: x @ self.weight + self.b, weight=normal(32, 8), b=normal(8))
    built(model, KINDS["int8"], tmp_path)
    assert [one.floats for one in backend.stored(tmp_path).values()] == [True]


def test_without_calibration_data_there_are_no_ranges():
    with pytest.raises(DataError, match="no calibration data"):
        run_pipeline(graph_of(nn.Linear(4, 4), normal(2, 4)), [parse_pass(KINDS["int8"])], Context())


def test_an_activation_that_never_varies_refuses_its_site_and_leaves_it_in_floats(tmp_path):
    model = Compute(lambda self, x: self.a(x) + self.b(x * 0), a=nn.Linear(32, 8), b=nn.Linear(32, 8))
    graph = graph_of(model, normal(4, 32))
    [outcome] = quantize(graph, KINDS["int8"])
    [row] = outcome.of("refused")
    assert (row.site, row.reason) == ("b.weight", "what it reads never varies on the calibration data")
    assert [row.site for row in outcome.of("changed")] == ["a.weight"]
    backend.build(graph, tmp_path)
    assert difference(graph.run, backend.open(tmp_path, 1), {"x0": normal(3, 32, seed=3)}) < 1e-4


def test_zeros_of_a_pruned_convolution_are_zero_codes(tmp_path):
    graph = graph_of(Residual(), normal(2, 3, 17, 17))
    quantize(graph, "sparsify{pattern=2:4,method=magnitude,refit=0}", "quantize{kind=int8,sweeps=2}")
    backend.build(graph, tmp_path)
    found = {site.name: (site.dtype, site.found) for site in inspect(tmp_path).sites}
    assert found["a.weight"] == found["b.weight"] == ("int8", "2:4")
