"""What is built for ONNX Runtime: it runs at any size, keeps the zeros under the site's name, and names no machine."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor import onnx_file
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.errors import BackendError
from compressor.graph import Graph
from compressor.passes.masks import nm_fraction
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.proof.parity import TOLERANCE, difference
from tests.compressor.tiny import Compute, graph_of, normal
from tests.trained import lowered, restored

MAGNITUDE = "sparsify{pattern=2:4,method=magnitude,refit=0}"
backend = OnnxRuntime()


@dataclasses.dataclass
class Built:
    """A pruned zoo model as it was written, and what its graph computes."""

    graph: Graph
    folder: Path
    changed: set[str]
    feeds: dict[str, Tensor]
    expected: dict[str, Tensor]


def build_pruned(name: str, folder: Path) -> Built:
    _, graph = lowered(name)
    with restored(graph):
        [outcome] = run_pipeline(graph, [parse_pass(MAGNITUDE)], Context())
        backend.build(graph, folder)
        expected = graph.run(graph.example)
        return Built(graph, folder, {row.site for row in outcome.of("changed")}, graph.example, expected)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Built:
    return build_pruned("tiny-gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Built:
    return build_pruned("tiny-resnet", tmp_path_factory.mktemp("resnet"))


@pytest.fixture(params=["gpt2", "resnet"])
def built(request) -> Built:
    return request.getfixturevalue(request.param)


# *** it runs ***


def test_the_session_computes_what_torch_computes(built):
    found = backend.open(built.folder)(built.feeds)
    assert found.keys() == built.expected.keys()
    for name, expected in built.expected.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4)


def test_the_cache_goes_in_and_comes_out_under_its_names(gpt2):
    names = [f"{layer}.{part}" for layer in range(4) for part in ("key", "value")]
    model = onnx_file.read(gpt2.folder / "model.onnx")
    assert [value.name for value in model.graph.inputs] == [
        "input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names),
    ]  # fmt: skip
    assert [value.name for value in model.graph.outputs] == ["logits", *(f"present.{name}" for name in names)]


def gpt2_feeds(batch: int, new: int, past: int) -> dict[str, Tensor]:
    names = [f"past_key_values.{layer}.{part}" for layer in range(4) for part in ("key", "value")]
    return {
        "input_ids": torch.arange(batch * new).reshape(batch, new),
        "attention_mask": torch.ones(batch, past + new, dtype=torch.long),
        "position_ids": torch.arange(past, past + new).expand(batch, new).contiguous(),
        **{name: normal(batch, 4, past, 32, seed=seed) for seed, name in enumerate(names)},
    }


@pytest.mark.parametrize(("batch", "new", "past"), [(1, 1, 0), (1, 7, 0), (3, 1, 5), (2, 5, 9), (1, 1, 1)])
def test_batch_new_and_past_tokens_vary_in_the_session(gpt2, batch, new, past):
    found = backend.open(gpt2.folder)(gpt2_feeds(batch, new, past))
    assert found["logits"].shape == (batch, new, 2048)
    assert found["present.3.value"].shape == (batch, 4, past + new, 32)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_of_images_varies_in_the_session(resnet, batch):
    [(name, x)] = resnet.feeds.items()
    feeds = {name: normal(batch, *x.shape[1:])}
    assert backend.open(resnet.folder)(feeds)["logits"].shape == (batch, 10)


def test_dynamic_axes_have_names_a_person_reads(gpt2):
    model = onnx_file.read(gpt2.folder / "model.onnx")
    shapes = {value.name: [str(size) for size in value.shape or ()] for value in model.graph.inputs}
    assert shapes["input_ids"] == ["batch", "sequence"]
    assert shapes["attention_mask"] == ["batch", "total_sequence"]
    assert shapes["past_key_values.0.key"] == ["batch", "4", "past_sequence", "32"]


# *** what is stored ***


def test_every_changed_site_is_found_by_its_name_with_its_zeros_on_the_contracted_axis(built):
    stored = backend.stored(built.folder)
    assert built.changed <= stored.keys()
    for name in built.changed:
        good, total = nm_fraction(stored[name].W, 2, 4)
        assert (name, good) == (name, total)


def test_folding_a_batch_norm_changes_the_values_and_keeps_the_zeros(resnet):
    stored = backend.stored(resnet.folder)
    model = onnx_file.read(resnet.folder / "model.onnx")
    assert not [node for node in model.graph if node.op_type == "BatchNormalization"]
    site = next(site for site in resnet.graph.sites if site.name in resnet.changed)
    assert stored[site.name].where == "Conv axis 1"
    assert stored[site.name].W.shape == site.weight.movedim(1, -1).shape
    assert not torch.equal(stored[site.name].W, site.weight.detach().movedim(1, -1))  # scaled per channel


@pytest.mark.parametrize(
    ("model", "x", "where"),
    [
        (nn.Linear(6, 4), normal(5, 6), "Gemm axis 1"),
        (nn.Linear(6, 4, bias=False), normal(2, 5, 6), "MatMul axis"),
        (Compute(lambda self, x: x @ self.weight, weight=normal(6, 4)), normal(2, 5, 6), "MatMul axis -2"),
        (nn.Conv2d(6, 4, 3, groups=2), normal(2, 6, 5, 5), "Conv axis 1"),
    ],
)
def test_a_stored_weight_has_its_contracted_axis_last(tmp_path, model, x, where):
    graph = graph_of(model, x)
    backend.build(graph, tmp_path)
    [(name, found)] = backend.stored(tmp_path).items()
    [site] = graph.sites
    assert name == site.name
    assert found.where.startswith(where)
    torch.testing.assert_close(found.W, site.weight.detach().movedim(site.axis, -1))


# *** half precision ***


def test_half_precision_keeps_the_zeros_and_stays_within_its_tolerance(tmp_path):
    source, _ = lowered("tiny-resnet")
    graph = source.lower("float16")
    run_pipeline(graph, [parse_pass(MAGNITUDE)], Context())
    backend.build(graph, tmp_path)
    assert difference(graph.run, backend.open(tmp_path), graph.example) < TOLERANCE["float16"]
    kinds = {str(x.W.dtype) for x in backend.stored(tmp_path).values()}
    assert kinds == {"torch.float16"}
    changed = [x.W for name, x in backend.stored(tmp_path).items() if name.startswith("resnet.encoder")]
    assert all(nm_fraction(W, 2, 4)[0] == nm_fraction(W, 2, 4)[1] for W in changed)


# *** the written folder ***


def test_the_same_graph_gives_the_same_bytes(resnet, tmp_path):
    with restored(resnet.graph):
        run_pipeline(resnet.graph, [parse_pass(MAGNITUDE)], Context())
        backend.build(resnet.graph, tmp_path)
    for path in sorted(resnet.folder.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_the_written_files_hold_no_path_of_this_machine(built):
    for path in built.folder.iterdir():
        assert str(Path.cwd()).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
        assert b".py" not in path.read_bytes()


@pytest.mark.parametrize("damage", ["cut in half", "not protobuf", "no data file", "data cut short"])
def test_a_damaged_file_is_one_clear_error(resnet, tmp_path, damage):
    model, data = ((resnet.folder / name).read_bytes() for name in ("model.onnx", "model.onnx.data"))
    model = {"cut in half": model[: len(model) // 2], "not protobuf": b"these are words"}.get(damage, model)
    (tmp_path / "model.onnx").write_bytes(model)
    if damage != "no data file":
        (tmp_path / "model.onnx.data").write_bytes(data[:100] if damage == "data cut short" else data)
    with pytest.raises(BackendError, match=r"model\.onnx"):
        backend.open(tmp_path)
    with pytest.raises(BackendError, match=r"model\.onnx"):
        backend.stored(tmp_path)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(BackendError, match=r"model\.onnx"):
        backend.open(tmp_path)
    with pytest.raises(BackendError, match=r"model\.onnx"):
        backend.stored(tmp_path)


# *** what it says of itself ***


def test_it_says_what_it_can_do_here():
    probe = backend.probe()
    assert probe.available
    assert probe.version.count(".") == 2
    assert backend.dtypes() == ("float32", "float16")


def test_when_it_is_not_installed_it_says_what_to_type(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("compressor.backends.onnxruntime.version", missing)
    assert (backend.probe().available, backend.probe().hint) == (False, "pip install onnxruntime")


def test_it_does_not_promise_speed_from_zeros():
    assert backend.gain("2:4").startswith("ONNX Runtime on CPU has no sparse kernels: zeros make the file compressible")
