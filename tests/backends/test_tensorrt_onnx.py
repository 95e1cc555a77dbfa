"""The file as TensorRT should read it: nothing left to fold, one type per product, plain zeros, names, shapes."""

import json

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from compressor.backends.eligibility import check
from compressor.backends.tensorrt_build import Spec, write_spec
from compressor.backends.tensorrt_onnx import prepare, profiles
from compressor.contractions import SITE
from compressor.errors import BackendError
from tests.backends.graphs import K, N, model, normal, sparse, write


def prepared(body: str, **rest) -> ir.Model:
    graph = model(body, **rest)
    prepare(graph)
    return graph


def ops(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]


def run(graph: ir.Model, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString()).run(None, {"X": x})[0]


# *** folding ***


@pytest.mark.parametrize(
    ("body", "w"),
    [
        ("T = Transpose<perm=[1,0]>(W) Y = MatMul(X, T)", sparse(N, K, axis=1)),
        ("T = Transpose(W) I = Identity(T) Y = MatMul(X, I)", sparse(N, K, axis=1)),
        ("C = Cast<to=10>(W) Y = MatMul(X, C)", sparse(K, N, dtype=np.float32)),
        ("C = Cast<to=10>(W) T = Transpose(C) Y = Gemm<transB=1>(X, T)", sparse(K, N, dtype=np.float32)),
        ("S = Constant<value_ints=[64,128]>() R = Reshape(W, S) Y = MatMul(X, R)", sparse(K * N).reshape(-1)),
    ],
)
def test_what_stands_before_a_weight_is_folded_into_it(body, w):
    before, after = model(body, W=w), prepared(body, W=w)
    assert ops(after) == [body.split("Y = ")[1].split("(")[0].split("<")[0]]
    assert [*after.graph.initializers] == ["W"], "the folded weight keeps the name, the old one is gone"
    x = normal(3, K)
    np.testing.assert_allclose(run(after, x), run(before, x), rtol=2e-2, atol=2e-2)


def test_a_dense_weight_that_an_embedding_reads_stays_as_stored_and_a_sparse_one_gets_its_own_copy():
    body = "E = Gather(W, I) T = Transpose(W) M = MatMul(X, T) Y = Add(M, E)"
    index = np.zeros(1, np.int64)
    weights = {"W": normal(K, K), "I": index}
    assert ops(prepared(body, **weights)) == ["Gather", "Transpose", "MatMul", "Add"]
    weights["W"] = sparse(K, K, axis=1)
    folded = prepared(body, **weights)
    assert ops(folded) == ["Gather", "MatMul", "Add"]
    assert set(folded.graph.initializers) == {"W", "I", "W.folded"}


def test_a_quantized_weight_keeps_its_dequantizer_alone():
    scale, zero = np.full(N, 0.1, np.float16), np.zeros(N, np.int8)
    body = "Q = QuantizeLinear<axis=1>(W, S, Z) D = DequantizeLinear<axis=1>(Q, S, Z) Y = MatMul(X, D)"
    w = sparse(K, N)
    graph = prepared(body, W=w, S=scale, Z=zero)
    assert ops(graph) == ["DequantizeLinear", "MatMul"]
    codes = graph.graph.initializers["W"].const_value
    assert codes is not None
    assert codes.dtype == ir.DataType.INT8
    np.testing.assert_array_equal(
        codes.numpy(), np.clip(np.rint(w.astype(np.float32) / np.float32(scale[0])), -128, 127)
    )


def test_two_readers_of_one_transpose_share_the_folded_weight():
    graph = prepared("T = Transpose(W) A = MatMul(X, T) B = MatMul(X, T) Y = Add(A, B)", W=sparse(N, K, axis=1))
    assert ops(graph) == ["MatMul", "MatMul", "Add"]
    assert [*graph.graph.initializers] == ["W"]


# *** types, zeros, names ***


def test_a_product_has_one_type():
    graph = prepared(
        "Y = Conv(X, W, B)", x="bfloat16[1,16,8,8]", y="bfloat16[a,b,c,d]",
        W=sparse(32, 16, 3, 3, axis=1, dtype=np.float32), B=normal(32, dtype=np.float32),
    )  # fmt: skip
    assert {value.dtype for value in graph.graph.initializers.values()} == {ir.DataType.BFLOAT16}
    assert check(graph)[0].is_eligible


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_minus_zero_becomes_zero_and_nothing_else_changes(dtype):
    w = sparse(K, N, dtype=dtype)
    kind = "float16" if dtype is np.float16 else "bfloat16"
    negative = np.where(w == 0, dtype(-0.0), w)
    graph = prepared("Y = MatMul(X, W)", W=negative, x=f"{kind}[b,{K}]", y=f"{kind}[b,m]")
    stored = graph.graph.initializers["W"].const_value
    assert stored is not None
    assert stored.numpy().tobytes() == w.tobytes() != negative.tobytes()


def test_a_layer_is_called_by_its_site():
    graph = model("A = MatMul(X, W) B = MatMul(X, W) Y = Add(A, B)", W=sparse(K, N))
    for node in graph.graph:
        node.metadata_props[SITE] = "h.0.mlp.weight"
    prepare(graph)
    assert [node.name for node in graph.graph][:2] == ["h.0.mlp", "h.0.mlp#2"]


# *** shapes ***


def text() -> ir.Model:
    return model("Y = MatMul(X, W)", x=f"float16[batch,sequence,{K}]", y="float16[a,b,c]", W=sparse(K, N))


def test_a_profile_has_least_usual_and_most_of_every_input():
    found = profiles(text(), {"batch": (1, 8, 32), "sequence": (1, 128, 256)})
    assert found == [{"X": [[1, 1, K], [8, 128, K], [32, 256, K]]}]


def test_a_model_whose_shapes_stand_still_has_no_profile():
    assert profiles(model("Y = MatMul(X, W)", x=f"float16[4,{K}]", W=sparse(K, N)), {}) == []


def test_an_axis_without_a_length_is_an_error_that_names_it():
    with pytest.raises(BackendError, match="the axis sequence of X") as refused:
        profiles(text(), {"batch": (1, 8, 32)})
    assert refused.value.hint == "--shape sequence=1:8:32"


def test_the_build_is_written_down_and_read_back(tmp_path):
    write(text(), tmp_path)
    write_spec("tensorrt", tmp_path, {"batch": (1, 8, 32), "sequence": (1, 128, 256)})
    spec = Spec.read(tmp_path)
    assert (spec.backend, spec.onnx, spec.profiles[0]["X"][1]) == ("tensorrt", "model.onnx", [8, 128, K])


def test_onnx_runtime_gets_the_same_build_for_its_own_provider(tmp_path):
    write(text(), tmp_path)
    write_spec("tensorrt", tmp_path, {"batch": (1, 8, 32), "sequence": (1, 128, 256)})
    (name, options), *others = json.loads((tmp_path / "run.json").read_text())["providers"]
    assert name == "TensorrtExecutionProvider"
    assert options["trt_sparsity_enable"] is True
    assert (options["trt_fp16_enable"], options["trt_bf16_enable"]) == (True, False)
    assert options["trt_profile_opt_shapes"] == f"X:8x128x{K}"
    assert [other for other, _ in others] == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_folder_that_is_no_artifact_is_an_error(tmp_path):
    with pytest.raises(BackendError, match="cannot find"):
        Spec.read(tmp_path)
    (tmp_path / "build.json").write_text('{"backend": "tensorrt", "levle": 5}')
    with pytest.raises(BackendError, match="cannot read"):
        Spec.read(tmp_path)
