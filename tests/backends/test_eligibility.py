"""Which weights can be sparse in TensorRT: accepted and refused cases side by side, each refusal with its reason."""

import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from compressor.backends.eligibility import check, most, nonzero
from compressor.engine import Verdict
from tests.backends.graphs import K, N, model, normal, sparse, write


def verdict(body: str, **rest) -> Verdict:
    [found] = check(model(body, **rest))
    return found


# *** operators and axes ***

IMAGE = "float16[1,16,8,8]"


@pytest.mark.parametrize(
    ("body", "w", "wrong", "x", "axis"),
    [
        ("Y = MatMul(X, W)", sparse(K, N), sparse(K, N, axis=1), None, 0),
        ("Y = MatMul(W, X)", sparse(N, K, axis=1), sparse(N, K), f"float16[{K},b]", 1),
        ("Y = Gemm(X, W)", sparse(K, N), sparse(K, N, axis=1), None, 0),
        ("Y = Gemm<transB=1>(X, W)", sparse(N, K, axis=1), sparse(N, K), None, 1),
        ("Y = Gemm(W, X)", sparse(N, K, axis=1), sparse(N, K), f"float16[{K},b]", 1),
        ("Y = Gemm<transA=1>(W, X)", sparse(K, N), sparse(K, N, axis=1), f"float16[{K},b]", 0),
        ("Y = Conv(X, W)", sparse(32, 16, 3, 3, axis=1), sparse(32, 16, 3, 3), IMAGE, 1),
        ("T = Transpose<perm=[1,0]>(W) Y = MatMul(X, T)", sparse(N, K, axis=1), sparse(N, K), None, 0),
        ("T = Transpose(W) Y = MatMul(X, T)", sparse(N, K, axis=1), sparse(N, K), None, 0),
        ("T = Identity(W) Y = MatMul(X, T)", sparse(K, N), sparse(K, N, axis=1), None, 0),
    ],
)  # fmt: skip
def test_the_pattern_counts_along_the_contracted_axis_only(body, w, wrong, x, axis):
    options = {} if x is None else {"x": x}
    found = verdict(body, W=w, **options)
    assert (found.is_eligible, found.rule, found.axis) == (True, "", axis)
    refused = verdict(body, W=wrong, **options)
    assert (refused.is_eligible, refused.rule) == (False, "axis")
    assert f"but {found.op} contracts axis {axis}" in refused.detail


def test_a_constant_node_is_a_weight_like_any_other():
    values = ", ".join(["0", "0", "1", "2"] * 4)
    constant = f"W = Constant<value = float16[16,1] {{{values}}}>()"
    found = verdict(f"{constant} Y = MatMul(X, W)", x="float16[b,16]")
    assert found.is_eligible
    assert found.shape == (16, 1)


def test_a_reshaped_weight_is_read_in_its_new_shape():
    shape = np.array([K, N])
    body = "T = Reshape(W, S) Y = MatMul(X, T)"
    assert verdict(body, W=sparse(K, N).reshape(-1), S=shape).is_eligible
    assert verdict(body, W=sparse(K, N, axis=1).reshape(-1), S=shape).rule == "axis"


def test_a_product_of_two_activations_is_no_site():
    assert check(model("T = Transpose<perm=[1,0]>(X) Y = MatMul(X, T)")) == ()


# *** the pattern itself ***


@pytest.mark.parametrize("kept", itertools.product([0, 1], repeat=4))
def test_every_arrangement_of_four_is_judged_by_its_count(kept):
    w = np.tile(np.array(kept, np.float16), 16).reshape(K, 1)
    assert (most(nonzero(w), 0) == sum(kept)).all()
    assert verdict("Y = MatMul(X, W)", W=w).is_eligible == (sum(kept) <= 2)


def test_one_bad_group_refuses_the_whole_weight_and_is_named():
    w = sparse(K, N)
    w[8:12, 5] = [0, 1, 1, 1]
    found = verdict("Y = MatMul(X, W)", W=w)
    assert (found.is_eligible, found.rule) == (False, "group")
    expected = "1 group holds more than 2 non-zeros, of 2048 along axis 0; the first is [8:12, 5]"
    assert found.detail == expected


def test_groups_begin_at_multiples_of_four():
    aligned = np.tile(np.array([0, 0, 1, 1, 1, 1, 0, 0], np.float16), 8).reshape(K, 1)
    assert verdict("Y = MatMul(X, W)", W=aligned).is_eligible
    assert verdict("Y = MatMul(X, W)", W=np.roll(aligned, 2, axis=0)).is_eligible is False


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_minus_zero_is_zero_and_the_smallest_number_is_not(dtype):
    w = sparse(K, N, dtype=dtype)
    assert not most(nonzero(np.where(w == 0, dtype(-0.0), w)), 0).max() > 2
    tiny = w.copy()
    tiny[np.argmax(w[:4, 0] == 0), 0] = ml_dtypes.finfo(dtype).smallest_subnormal
    assert most(nonzero(tiny), 0).max() == 3


def test_what_a_cast_rounds_to_zero_is_zero():
    w = sparse(K, N, dtype=np.float32)
    w[w == 0] = 1e-30
    assert verdict("Y = MatMul(X, W)", W=w, x=f"float[b,{K}]", y="float[b,m]").rule == "dense"
    cast = verdict("T = Cast<to=10>(W) Y = MatMul(X, T)", W=w)
    assert (cast.is_eligible, cast.dtype) == (True, "float16")


def test_not_a_number_is_not_zero():
    w = sparse(K, N)
    w[:4, 0] = [0, 1, 1, np.nan]
    assert verdict("Y = MatMul(X, W)", W=w).rule == "group"


# *** types ***


@pytest.mark.parametrize(
    ("dtype", "name", "rule"),
    [(np.float16, "float16", ""), (ml_dtypes.bfloat16, "bfloat16", ""), (np.float32, "float", "dtype")],
)
def test_half_types_have_sparse_kernels_and_single_has_none(dtype, name, rule):
    found = verdict("Y = MatMul(X, W)", W=sparse(K, N, dtype=dtype), x=f"{name}[b,{K}]", y=f"{name}[b,m]")
    assert found.rule == rule
    assert ("2:4 kernels take float16, bfloat16, int8, float8_e4m3fn" in found.detail) == bool(rule)


def test_a_weight_that_is_cast_up_is_multiplied_in_single():
    found = verdict("T = Cast<to=1>(W) Y = MatMul(X, T)", W=sparse(K, N), x=f"float[b,{K}]", y="float[b,m]")
    assert (found.dtype, found.rule) == ("float32", "dtype")


SCALE, ZERO = np.full(N, 0.1, np.float16), np.zeros(N, np.int8)
ACTIVATION = "A = QuantizeLinear(X, S1, Z1) B = DequantizeLinear(A, S1, Z1)"
ONE = {"S1": np.array(0.1, np.float16), "Z1": np.array(0, np.int8)}
Q_DQ = "Q = QuantizeLinear<axis=1>(W, S, Z) D = DequantizeLinear<axis=1>(Q, S, Z)"
DQ = "D = DequantizeLinear<axis=1>(W, S, Z)"


def test_quantized_on_both_sides_the_codes_are_what_counts():
    quantized = verdict(f"{ACTIVATION} {Q_DQ} Y = MatMul(B, D)", W=sparse(K, N), S=SCALE, Z=ZERO, **ONE)
    assert (quantized.dtype, quantized.rule) == ("int8", "")
    codes = verdict(f"{ACTIVATION} {DQ} Y = MatMul(B, D)", W=(sparse(K, N) * 9).astype(np.int8), S=SCALE, Z=ZERO, **ONE)
    assert (codes.dtype, codes.rule) == ("int8", "")
    wrong = (sparse(K, N, axis=1) * 30).astype(np.int8)
    wrong[(wrong == 0) & (sparse(K, N, axis=1) != 0)] = 1
    assert verdict(f"{ACTIVATION} {DQ} Y = MatMul(B, D)", W=wrong, S=SCALE, Z=ZERO, **ONE).rule == "axis"


def test_small_weights_that_quantize_to_zero_are_zero():
    w = sparse(K, N)
    w[w == 0] = 0.01
    assert verdict(f"{ACTIVATION} {Q_DQ} Y = MatMul(B, D)", W=w, S=SCALE, Z=ZERO, **ONE).is_eligible


def test_a_zero_point_moves_what_is_zero():
    codes, zero = (sparse(K, N) * 9).astype(np.int8), np.full(N, 3, np.int8)
    assert verdict(f"{DQ} Y = MatMul(X, D)", W=codes, S=SCALE, Z=zero).rule == "dense"
    assert verdict(f"{DQ} Y = MatMul(X, D)", W=codes + np.int8(3), S=SCALE, Z=zero).is_eligible


def test_quantized_weights_alone_are_multiplied_in_the_type_of_the_scale():
    found = verdict(f"{DQ} Y = MatMul(X, D)", W=(sparse(K, N) * 9).astype(np.int8), S=SCALE, Z=ZERO)
    assert (found.dtype, found.rule) == ("float16", "")


def test_float8_codes_have_sparse_kernels():
    w = sparse(K, N).astype(ml_dtypes.float8_e4m3fn)
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    body = f"{ACTIVATION} D = DequantizeLinear(W, S, Z) Y = MatMul(B, D)"
    found = verdict(body, W=w, S=np.array(0.1, np.float16), Z=zero, S1=ONE["S1"], Z1=zero)
    assert (found.dtype, found.is_eligible) == ("float8_e4m3fn", True)


# *** sizes, ties, operators without kernels ***


def test_refuses_a_length_that_is_not_a_multiple_of_four():
    found = verdict("Y = MatMul(X, W)", W=normal(66, N), x="float16[b,66]")
    assert (found.rule, found.detail) == ("multiple", "K is 66, not a multiple of 4")
    assert verdict("Y = Conv<group=16>(X, W)", W=normal(16, 1, 3, 3), x=IMAGE).rule == "multiple"


@pytest.mark.parametrize(("k", "n", "rule"), [(64, 64, ""), (20, 64, "alignment"), (64, 20, "alignment")])
def test_sizes_that_kernels_dislike_are_advice_and_no_refusal(k, n, rule):
    found = verdict("Y = MatMul(X, W)", W=sparse(k, n), x=f"float16[b,{k}]")
    assert (found.is_eligible, found.rule) == (True, rule)
    assert ("multiples of 16 suit the kernels of float16" in found.detail) == bool(rule)


TIED = "E = Gather(W, I) T = Transpose(W) Y = MatMul(X, T)"


def test_a_dense_weight_that_an_embedding_reads_is_tied_and_a_sparse_one_is_eligible():
    index = np.array([0])
    found = verdict(TIED, W=normal(N, K), I=index)
    assert (found.rule, found.is_meant) == ("tied", False)
    assert found.detail == "Gather reads it too, and it is dense"
    assert verdict(TIED, W=sparse(N, K, axis=1), I=index).is_eligible


def test_a_dense_weight_is_dense_and_not_meant_to_be_sparse():
    found = verdict("Y = MatMul(X, W)", W=normal(K, N))
    assert (found.rule, found.is_meant, found.detail) == ("dense", False, "0% zeros")


def test_half_of_the_weights_zero_anywhere_is_no_pattern():
    w = normal(K, N)
    w[np.random.default_rng(1).random((K, N)) < 0.5] = 0
    found = verdict("Y = MatMul(X, W)", W=w)
    assert (found.rule, found.is_meant) == ("group", True)
    assert "groups hold more than 2 non-zeros" in found.detail


def test_stacks_and_operators_without_kernels_are_refused():
    stack = verdict("Y = MatMul(X, W)", W=np.stack([sparse(K, N)] * 3), x=f"float16[3,b,{K}]", y="float16[3,b,m]")
    assert (stack.rule, stack.detail) == ("stack", "a stack of 3 matrices; only one matrix can be sparse")
    transposed = verdict("Y = ConvTranspose(X, W)", W=sparse(16, 32, 3, 3), x=IMAGE, y="float16[a,b,c,d]")
    assert transposed.detail == "TensorRT has no sparse kernel for ConvTranspose"


# *** beside the tool of the vendor ***

AGREE = {
    "MatMul": ("Y = MatMul(X, W)", sparse(K, N), {}),
    "MatMul along N": ("Y = MatMul(X, W)", sparse(K, N, axis=1), {}),
    "MatMul dense": ("Y = MatMul(X, W)", normal(K, N), {}),
    "MatMul left": ("Y = MatMul(W, X)", sparse(N, K, axis=1), {"x": f"float16[{K},b]"}),
    "Gemm": ("Y = Gemm(X, W)", sparse(K, N), {}),
    "Gemm transB": ("Y = Gemm<transB=1>(X, W)", sparse(N, K, axis=1), {}),
    "Gemm transB along N": ("Y = Gemm<transB=1>(X, W)", sparse(N, K), {}),
    "Conv": ("Y = Conv(X, W)", sparse(32, 16, 3, 3, axis=1), {"x": IMAGE}),
    "Conv along outputs": ("Y = Conv(X, W)", sparse(32, 16, 3, 3), {"x": IMAGE}),
    "Transpose": ("T = Transpose<perm=[1,0]>(W) Y = MatMul(X, T)", sparse(N, K, axis=1), {}),
    "Q/DQ": (f"{Q_DQ} Y = MatMul(X, D)", sparse(K, N), {"S": SCALE, "Z": ZERO}),
    "minus zero": ("Y = MatMul(X, W)", np.where(sparse(K, N) == 0, np.float16(-0.0), sparse(K, N)), {}),
}
BFLOAT16 = {"x": f"bfloat16[b,{K}]", "y": "bfloat16[b,m]"}
HOLES = {
    # The vendor's tool says "non-sparse", or nothing at all, where the weight is 2:4 as the engine reads it.
    "bfloat16": ("Y = MatMul(X, W)", sparse(K, N, dtype=ml_dtypes.bfloat16), BFLOAT16),
    "int8 codes": (f"{DQ} Y = MatMul(X, D)", (sparse(K, N) * 9).astype(np.int8), {"S": SCALE, "Z": ZERO}),
    "Identity": ("T = Identity(W) Y = MatMul(X, T)", sparse(K, N), {}),
    "Transpose without perm": ("T = Transpose(W) Y = MatMul(X, T)", sparse(N, K, axis=1), {}),
}  # fmt: skip


def polygraphy_finds(path: Path) -> bool:
    command = shutil.which("polygraphy", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("polygraphy is not installed: pip install -e '.[dev]'")
    done = subprocess.run([command, "inspect", "sparsity", path.name], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return "Found sparse tensor: W" in done.stdout


@pytest.mark.parametrize("case", AGREE)
def test_agrees_with_polygraphy_where_that_tool_is_right(case, tmp_path):
    body, w, rest = AGREE[case]
    graph = model(body, W=w, **rest)
    [found] = check(graph)
    assert found.is_eligible == polygraphy_finds(write(graph, tmp_path))


@pytest.mark.parametrize("case", HOLES)
def test_sees_what_polygraphy_misses(case, tmp_path):
    body, w, rest = HOLES[case]
    graph = model(body, W=w, **rest)
    assert check(graph)[0].is_eligible
    assert not polygraphy_finds(write(graph, tmp_path))


# *** speed ***


def test_all_weights_of_gpt2_are_judged_in_seconds():
    sizes = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]
    weights = {f"W{i}": sparse(*shape) for i, shape in enumerate(sizes)}
    body = " ".join(f"Y{i} = MatMul(X{i}, W{i})" for i in range(4))
    text = body.replace("Y3", "Y")
    graph = ir.from_proto(ir.to_proto(model(text.replace("X0", "X"), x="float16[b,768]", **weights)))
    start = time.perf_counter()
    for _ in range(12):
        assert len(check(graph)) == 4
    assert time.perf_counter() - start < 8
