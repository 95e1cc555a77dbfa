"""Two sides, and what differs: exact counts, shapes and shares, as diff(1) would answer."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import compressor
from compressor import driver, onnx_file
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.commands.diffing import diff
from compressor.errors import SourceError
from compressor.pipeline import Context, parse_pass, run_pipeline
from tests.backends.graphs import model, normal, sparse
from tests.backends.graphs import write as write_into
from tests.compressor import tiny
from tests.compressor.test_terminal import shown

W = normal(64, 32, dtype=np.float32)
BODY = "H = MatMul(X, W) Y = Relu(H)"


@pytest.fixture
def write(tmp_path):
    """Writes a graph under a name, and returns its path."""

    def written(name: str, body: str = BODY, **weights: np.ndarray):
        (tmp_path / name).mkdir()
        graph = model(body, "float[b,64]", "float[b,m]", **weights)
        return write_into(graph, tmp_path / name)

    return written


def only(found):
    [one] = found.weights
    return one


# *** the same ***


def test_a_file_and_itself_are_the_same(write):
    found = diff(write("a", W=W), write("b", W=W.copy()))
    assert found
    assert (found.operators, found.lines, only(found).relative_difference) == ((), (), 0)
    assert json.loads(found.to_json())["same"] is True


def test_names_of_values_do_not_count(write):
    assert diff(write("a", W=W), write("b", "Z = MatMul(X, W) Y = Relu(Z)", W=W))


# *** weights ***


def test_a_changed_weight_tells_its_zeros_its_pattern_and_how_far_it_moved(write):
    pruned = sparse(64, 32, dtype=np.float32)
    found = diff(write("a", W=W), write("b", W=pruned))
    one = only(found)
    assert not found
    assert (one.before.zeros, one.before.found, one.before.where) == (0, "", "MatMul axis 0")
    assert (one.after.zeros, one.after.found) == (0.5, "2:4")
    assert one.relative_difference == pytest.approx(np.linalg.norm(W - pruned) / np.linalg.norm(W), rel=1e-5)
    assert not found.lines


def test_a_weight_of_another_shape_is_not_subtracted(write):
    found = diff(write("a", W=W), write("b", W=W[:, :16]))
    assert (only(found).before.shape, only(found).after.shape) == ((64, 32), (64, 16))
    assert only(found).relative_difference is None
    assert [line for line in found.lines if line.startswith("+M")] == ["+MatMul([b, 64], W[64, 16]) -> [?]"]


def test_another_type_is_a_difference_though_no_value_moved(write):
    body = "C = Cast<to=10>(X) H = MatMul(C, W) Z = Cast<to=1>(H) Y = Relu(Z)"
    half = W.astype(np.float16)
    found = diff(write("a", W=half.astype(np.float32)), write("b", body, W=half))
    one = only(found)
    assert (one.relative_difference, one.before.dtype, one.after.dtype) == (0, "float32", "float16")
    assert not one.is_same


def test_a_weight_that_was_all_zeros_and_one_that_stays_so(write):
    nothing = np.zeros_like(W)
    assert math.isinf(only(diff(write("a", W=nothing), write("b", W=W))).relative_difference)
    assert diff(write("c", W=nothing), write("d", W=nothing))


def test_what_one_side_alone_has_is_said(write):
    found = diff(write("a", W=W), write("b", "H = MatMul(X, V) Z = Add(H, bias) Y = Relu(Z)", V=W, bias=W[0]))
    assert [(one.name, one.before is None, one.after is None) for one in found.weights] == [
        ("W", False, True), ("V", True, False), ("bias", True, False),
    ]  # fmt: skip


def test_what_nothing_contracts_is_compared_by_name(write):
    body = "H = MatMul(X, W) Z = Add(H, bias) Y = Relu(Z)"
    found = diff(write("a", body, W=W, bias=W[0]), write("b", body, W=W, bias=2 * W[0]))
    assert [(one.name, one.relative_difference) for one in found.weights] == [("W", 0), ("bias", pytest.approx(1))]


# *** graphs ***


def test_operators_that_came_and_went_are_counted_and_shown(write):
    found = diff(write("a", W=W), write("b", "H = Gemm<transB=0>(X, W) Z = Relu(H) Y = Relu(Z)", W=W))
    assert [(one.op, one.before, one.after) for one in found.operators] == [
        ("Gemm", 0, 1), ("MatMul", 1, 0), ("Relu", 1, 2),
    ]  # fmt: skip
    assert [line for line in found.lines if line[0] in "+-"][2:] == [
        "-MatMul([b, 64], W[64, 32]) -> [?]", "+Gemm([b, 64], W[64, 32]) {transB=0} -> [?]", "+Relu([?]) -> [?]",
    ]  # fmt: skip


# *** models ***


def net(scale: float = 1.0) -> compressor.Model:
    torch.manual_seed(0)
    first, last = nn.Linear(32, 64), nn.Linear(64, 8)
    with torch.no_grad():
        last.bias.mul_(scale)
    return compressor.Model(nn.Sequential(first, nn.ReLU(), last), torch.randn(3, 32))


def test_two_models_are_compared_parameter_by_parameter():
    found = diff(net(), net(scale=3.0))
    assert [(one.name, one.relative_difference) for one in found.weights if not one.is_same] == [
        ("2.bias", pytest.approx(2)),
    ]  # fmt: skip
    assert found.lines == ()
    assert diff(net(), net())


def test_a_model_and_what_it_was_exported_to_have_the_same_weights(tmp_path, quick):
    recipe = "export | sparsify{pattern=2:4,method=magnitude,refit=0}"
    driver.export(net(), recipe, output=tmp_path / "sparse")
    driver.export(net(), output=tmp_path / "dense")
    unchanged, pruned = diff(net(), tmp_path / "dense"), diff(net(), tmp_path / "sparse")
    assert unchanged
    assert "has ATen operators" in unchanged.unlike
    assert not pruned
    assert {one.name: one.is_same for one in pruned.weights} == {
        "0.weight": False, "2.weight": True, "0.bias": True, "2.bias": True,
    }  # fmt: skip
    first = pruned.weights[0]
    assert (first.before.zeros, first.after.zeros, first.after.found) == (0, 0.5, "2:4")


@pytest.mark.parametrize("kind", ["int8-dynamic", "int4"])
def test_codes_are_compared_by_the_values_that_they_stand_for(tmp_path, kind):
    graph = tiny.graph_of(nn.Linear(64, 16, bias=False), tiny.normal(4, 64))
    batches = [graph.example]
    for name in ("float", kind):
        if name == kind:
            one_pass = parse_pass(f"quantize{{kind={kind},sweeps=0,samples=4}}")
            run_pipeline(graph, [one_pass], Context(lambda n: batches, 0))
        (tmp_path / name).mkdir()
        OnnxRuntime().build(graph, tmp_path / name)
    [one] = diff(tmp_path / "float", tmp_path / kind).weights
    assert (one.before.dtype, one.after.dtype) == ("float32", kind.partition("-")[0])
    assert 0 < one.relative_difference < (0.02 if kind != "int4" else 0.2)


# *** what a person sees ***


def test_the_table_fits_and_tells_what_turned_into_what(write):
    from compressor.cli.diff_view import show_diff

    found = diff(write("a", W=W), write("b", "H = MatMul(X, W) Z = Relu(H) Y = Relu(Z)", W=sparse(64, 32).astype("f4")))
    text = shown(show_diff, found)
    assert text.startswith("different")
    assert "dense > 2:4" in text
    assert "0% > 50%" in text
    assert "1 lines of the graph differ: --verbose shows them" in text
    assert "+Relu([?]) -> [?]" in shown(show_diff, found, True)
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert shown(show_diff, diff(write("c", W=W), write("d", W=W))).startswith("the same")


def test_a_file_that_is_not_there_is_refused(write, tmp_path):
    with pytest.raises(SourceError, match="cannot find"):
        diff(tmp_path / "none.onnx", write("a", W=W))


def test_inputs_of_a_file_have_symbols_where_they_vary(tmp_path):
    graph = tiny.graph_of(nn.Linear(4, 2), torch.zeros(2, 4))
    OnnxRuntime().build(graph, tmp_path)
    assert onnx_file.inputs(tmp_path / onnx_file.MODEL_FILE) == {"x0": (["batch", 4], torch.float32)}
