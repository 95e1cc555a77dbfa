"""The real parser and builder, without a GPU: TensorRT for RTX on the zoo and on small graphs, and what it refuses."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from compressor.backends.onnxruntime import OnnxRuntime
from compressor.backends.tensorrt import TensorRT, TensorRTRTX
from compressor.backends.tensorrt_build import write_spec
from compressor.backends.tensorrt_child import Child, ask
from compressor.engine import Engine, EngineBackend
from compressor.errors import BackendError, BuildError, NoDeviceError, NotInstalledError, ParseError
from compressor.onnx_file import read
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.proof.parity import ROUNDED, difference
from compressor.shapes import Range, choose_shapes
from tests.backends.graphs import K, N, model, normal, sparse, write
from tests.backends.test_integers import Residual
from tests.compressor.tiny import Compute, graph_of
from tests.trained import WINDOW, lowered, restored

backend = TensorRTRTX()
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

rtx = pytest.mark.skipif(not backend.probe().version, reason="not installed: pip install -e '.[dev]'")


def has_gpu() -> bool:
    return backend.probe().version != "" and ask({"command": "probe", "package": "tensorrt_rtx"})["devices"] > 0


def built(folder: Path, body: str, shapes: dict[str, Range] | None = None, **rest) -> Engine:
    write(model(body, **rest), folder)
    write_spec("tensorrt-rtx", folder, shapes or {})
    return backend.build_engine(folder)


BATCH: dict[str, Range] = {"b": (1, 8, 32)}


# *** what is built ***


@rtx
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tiny-gpt2", "float16"),
        ("tiny-resnet", "bfloat16"),
        *(pytest.param("tiny-gpt2", dtype, marks=pytest.mark.slow) for dtype in ("bfloat16", "float32")),
        *(pytest.param("tiny-resnet", dtype, marks=pytest.mark.slow) for dtype in ("float16", "float32")),
    ],
)
def test_builds_the_zoo_pruned_in_every_type(name, dtype, tmp_path):
    source, graph = lowered(name)
    with restored(graph):
        run_pipeline(graph, [parse_pass("sparsify{pattern=2:4,method=magnitude,refit=0}")], Context())
        written = source.lower(dtype)
        backend.build(written, tmp_path)
    backend.prepare(tmp_path, choose_shapes(written, source.workloads(), WINDOW, {}))
    meant = [one for one in backend.check(tmp_path / "model.onnx") if one.is_meant]
    assert len(meant) == {"tiny-gpt2": 16, "tiny-resnet": 14}[name]
    assert all(one.is_eligible == (dtype != "float32") for one in meant), [str(one) for one in meant]
    engine = backend.build_engine(tmp_path)
    assert engine.is_built
    assert engine.bytes == (tmp_path / "sparse.engine").stat().st_size > 100_000
    assert engine.runtime.startswith("TensorRT for RTX 1.")
    assert "[INFO]" in (tmp_path / "sparse.log").read_text()


@rtx
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_grows_with_its_type(dtype, tmp_path):
    kind = {"float32": "float"}.get(dtype, dtype)
    w = sparse(1024, 1024, dtype=DTYPES[dtype])
    engine = built(tmp_path, "Y = MatMul(X, W)", BATCH, W=w, x=f"{kind}[b,1024]", y=f"{kind}[b,m]")
    assert w.nbytes < engine.bytes < 1.3 * w.nbytes


@rtx
def test_weights_may_lie_in_a_file_beside_the_model(tmp_path):
    import onnx_ir as ir

    ir.save(model("Y = MatMul(X, W)", W=sparse(K, N)), tmp_path / "model.onnx", external_data="model.onnx.data")
    write_spec("tensorrt-rtx", tmp_path, BATCH)
    assert (tmp_path / "model.onnx.data").stat().st_size == K * N * 2
    assert backend.build_engine(tmp_path).is_built


@rtx
def test_quantized_on_both_sides_builds_and_weighs_a_byte_each(tmp_path):
    scale, zero = np.full(1024, 0.1, np.float16), np.zeros(1024, np.int8)
    one = {"S1": np.array(0.1, np.float16), "Z1": np.array(0, np.int8)}
    body = (
        "A = QuantizeLinear(X, S1, Z1) B = DequantizeLinear(A, S1, Z1) "
        "D = DequantizeLinear<axis=1>(W, S, Z) Y = MatMul(B, D)"
    )
    w = (sparse(1024, 1024) * 9).astype(np.int8)
    engine = built(tmp_path, body, BATCH, W=w, S=scale, Z=zero, **one, x="float16[b,1024]")
    assert w.nbytes < engine.bytes < 1.3 * w.nbytes


HEADED = Compute(
    lambda self, x: self.l(self.e(x[:, 0].long().abs() % 64)) @ self.e.weight.T, e=nn.Embedding(64, 32),
    l=nn.Linear(32, 32),
)  # fmt: skip


@pytest.mark.parametrize(("outputs", "dtype"), [("auto", "float16"), ("all", "float16"), ("all", "float32")])
@pytest.mark.parametrize(("net", "shape"), [(Residual(), (2, 3, 17, 17)), (HEADED, (4, 32))], ids=["conv", "tied head"])
def test_quantized_graphs_are_sparse_on_their_codes_and_build(net, shape, outputs, dtype, tmp_path):
    graph = graph_of(copy.deepcopy(net), torch.randn(shape))
    batches = [{"x0": torch.randn(shape)} for _ in range(4)]
    passes = [
        "sparsify{pattern=2:4,method=magnitude,refit=0}",
        f"quantize{{kind=int8,embeddings=true,outputs={outputs}}}",
    ]
    run_pipeline(graph, list(map(parse_pass, passes)), Context(lambda n: batches, kernels=backend.quantizes))
    kind = getattr(torch, dtype)
    if dtype != "float32":
        half = graph_of(copy.deepcopy(net).to(kind), torch.randn(shape).to(kind))
        graph.repeat_on(half)
        graph = half
    backend.build(graph, tmp_path)
    assert {(one.dtype, one.scale.dtype) for one in backend.stored(tmp_path).values()} == {("int8", kind)}
    weights = read(tmp_path / "model.onnx").graph.initializers
    types = {value.dtype.name for value in weights.values()}
    assert types - {"INT64", "BOOL"} == {"INT8", {"float32": "FLOAT", "float16": "FLOAT16"}[dtype]}
    if net is HEADED:
        assert [name for name, one in weights.items() if one.const_value.size >= 64 * 32] == ["e.weight"], "once"
    assert [one.dtype for one in backend.check(tmp_path / "model.onnx") if one.is_eligible] == (
        ["int8", "int8"] if net is not HEADED else ["int8"]
    )
    assert difference(graph.run, OnnxRuntime(exact=True).open(tmp_path), {"x0": torch.randn(shape).to(kind)}) < ROUNDED
    if backend.probe().version:
        write_spec("tensorrt-rtx", tmp_path, {"batch": (1, 4, 8)})
        assert backend.build_engine(tmp_path).is_built


# *** what is refused ***

REFUSED = {
    "two types": ("Y = MatMul(X, W)", {"W": sparse(K, N, dtype=np.float32)}, "must have same input types"),
    "zero point": (
        "D = DequantizeLinear<axis=1>(W, S, Z) Y = MatMul(X, D)",
        {"W": normal(K, N).astype(np.int8), "S": np.full(N, 0.1, np.float16), "Z": np.full(N, 3, np.int8)},
        "Non-zero zero point is not supported",
    ),
}


@rtx
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_parser_refuses_is_an_error_with_its_node_and_its_reason(case, tmp_path):
    body, weights, reason = REFUSED[case]
    with pytest.raises(ParseError, match="TensorRT for RTX cannot read the ONNX file at the node") as refused:
        built(tmp_path, body, BATCH, **weights)
    assert reason in str(refused.value)
    assert refused.value.node in str(refused.value)
    assert refused.value.node.endswith(("to Y", "to D"))


@rtx
def test_a_file_that_is_no_onnx_is_a_parse_error(tmp_path):
    write(model("Y = MatMul(X, W)", W=sparse(K, N)), tmp_path)
    write_spec("tensorrt-rtx", tmp_path, BATCH)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ParseError, match="cannot read the ONNX file"):
        backend.build_engine(tmp_path)


@rtx
def test_a_missing_profile_is_a_build_error_with_the_end_of_the_log(tmp_path):
    write(model("Y = MatMul(X, W)", x=f"float16[4,{K}]", W=sparse(K, N)), tmp_path)
    write_spec("tensorrt-rtx", tmp_path, {})
    write(model("Y = MatMul(X, W)", W=sparse(K, N)), tmp_path)  # now its batch varies
    with pytest.raises(BuildError, match="cannot build the engine") as refused:
        backend.build_engine(tmp_path)
    assert "no optimization profile has been defined" in str(refused.value)
    assert "no optimization profile" in (tmp_path / "sparse.log").read_text()


@rtx
def test_a_builder_flag_that_this_version_has_not_is_an_error(tmp_path):
    write(model("Y = MatMul(X, W)", W=sparse(K, N)), tmp_path)
    write_spec("tensorrt-rtx", tmp_path, BATCH)
    path = tmp_path / "build.json"
    path.write_text(path.read_text().replace('"flags": []', '"flags": ["FP16"]'))
    with pytest.raises(BuildError, match="cannot build") as refused:
        backend.build_engine(tmp_path)
    assert "has no builder flag FP16" in str(refused.value)


# *** without a GPU, without TensorRT ***


def test_both_are_backends_that_compile_engines():
    assert isinstance(TensorRT(), EngineBackend)
    assert isinstance(backend, EngineBackend)


@rtx
@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_engine_is_built_and_says_what_is_left_to_do(tmp_path):
    engine = built(tmp_path, "Y = MatMul(X, W)", BATCH, W=sparse(K, N))
    assert (engine.is_built, engine.runs_here) == (True, False)
    assert engine.why == "TensorRT for RTX finds no GPU here to run it on"
    assert engine.summary().endswith("did not say which layers get sparse kernels")
    with pytest.raises(NoDeviceError, match="finds no GPU here"):
        backend.open(tmp_path)
    (tmp_path / "dense.engine").write_bytes(b"")
    with pytest.raises(NoDeviceError):
        backend.time_engines(tmp_path, {"X": torch.zeros(1, K)})


def test_an_engine_that_is_not_there_is_an_error_that_says_how_to_make_it(tmp_path):
    with pytest.raises(BackendError, match=r"holds no sparse\.engine") as refused:
        backend.open(tmp_path)
    assert "compress build" in str(refused.value)


@pytest.mark.skipif(TensorRT().probe().version != "", reason="TensorRT is installed")
def test_without_tensorrt_the_file_is_ready_and_the_engine_says_what_it_needs(tmp_path):
    write(model("Y = MatMul(X, W)", W=sparse(K, N)), tmp_path)
    TensorRT().prepare(tmp_path, BATCH)
    engine = TensorRT().build_engine(tmp_path)
    assert (engine.is_built, engine.runs_here) == (False, False)
    assert engine.why.startswith("TensorRT is not installed here (ModuleNotFoundError")
    assert (tmp_path / "build.json").exists()
    with pytest.raises(NotInstalledError, match="not installed here") as refused:
        ask({"command": "probe", "package": "tensorrt"})
    assert refused.value.hint == "pip install 'compressor[tensorrt]'"


@pytest.mark.skipif(TensorRT().probe().version == "" or has_gpu(), reason="needs TensorRT and no GPU")
def test_tensorrt_without_a_gpu_says_so(tmp_path):
    write(model("Y = MatMul(X, W)", W=sparse(K, N)), tmp_path)
    TensorRT().prepare(tmp_path, BATCH)
    assert "finds no GPU here" in TensorRT().build_engine(tmp_path).why


# *** the process ***


@rtx
def test_a_worker_that_is_killed_is_a_build_error_with_its_exit_code():
    with Child({"command": "serve", "package": "tensorrt_rtx", "engine": "missing"}) as child:
        child.process.kill()
        with pytest.raises(BuildError, match="ended its process") as refused:
            child.answer()
    assert "exit code -9" in str(refused.value)


@rtx
def test_no_worker_outlives_its_parent(tmp_path):
    code = (
        "from compressor.backends.tensorrt_child import Child\n"
        "child = Child({'command': 'probe', 'package': 'tensorrt_rtx'})\n"
        "print(child.process.pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
