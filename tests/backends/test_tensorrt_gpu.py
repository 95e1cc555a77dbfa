"""On a host with a GPU: engines run, compute what torch computes, and their sparse kernels are counted and timed."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.backends.tensorrt import TensorRT, TensorRTRTX
from compressor.backends.tensorrt_build import write_spec
from compressor.commands import building
from compressor.driver import export
from compressor.engine import Engine
from compressor.errors import BackendError
from compressor.shapes import Range
from tests.backends.graphs import model, sparse, write

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


def installed(runtime: type[TensorRT]) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not runtime().probe().version, reason=f"{runtime.name} is not installed")


@cache
def why_not(runtime: type[TensorRT]) -> str:
    """Why a small engine does not run on this GPU (TensorRT for RTX leaves some GPUs out), or ""."""
    with tempfile.TemporaryDirectory() as folder:
        return engine_of_one_layer(runtime(), Path(folder), sparse(256, 128), (1, 64, 256)).why


@pytest.fixture(autouse=True)
def _runs_here(request):
    if "runtime" in request.fixturenames and (why := why_not(request.getfixturevalue("runtime"))):
        pytest.skip(why)


RUNTIMES = [pytest.param(one, marks=installed(one), id=one.name) for one in (TensorRT, TensorRTRTX)]
WIDTH = 4096


def engine_of_one_layer(runtime: TensorRT, folder: Path, w: np.ndarray, batch: Range) -> Engine:
    write(model("Y = MatMul(X, W)", W=w, x=f"float16[b,{w.shape[0]}]"), folder)
    write_spec(runtime.name, folder, {"b": batch})
    return runtime.build_engine(folder)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_engine_computes_the_product_at_every_length_of_its_profile(runtime, tmp_path):
    w = sparse(256, 128)
    assert engine_of_one_layer(runtime(), tmp_path, w, (1, 64, 256)).runs_here
    run = runtime().open(tmp_path)
    for batch in (1, 64, 256, 300):  # beyond the profile it is cut
        x = torch.randn(batch, 256).half()
        expected = x.float() @ torch.from_numpy(w).float()
        torch.testing.assert_close(run({"X": x})["Y"].float(), expected, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_that_do_not_fit_are_an_error_in_words(runtime, tmp_path):
    assert engine_of_one_layer(runtime(), tmp_path, sparse(256, 128), (8, 64, 256)).runs_here
    with pytest.raises(BackendError, match="cannot run the engine"):
        runtime().open(tmp_path)({"X": torch.zeros(1, 256).half()})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sparse_and_dense_engines_are_timed_on_the_same_inputs(runtime, tmp_path):
    engine_of_one_layer(runtime(), tmp_path, sparse(WIDTH, WIDTH), (1, 8192, 8192))
    times = runtime().time_engines(tmp_path, {"X": torch.randn(8192, WIDTH).half()})
    assert len(times["dense"]) == len(times["sparse"]) == 100
    assert all(0 < one < 1000 for one in (*times["dense"], *times["sparse"]))


@pytest.mark.parametrize("runtime", RUNTIMES[:1])
def test_tensorrt_counts_a_large_sparse_layer_as_eligible_and_a_dense_one_not(runtime, tmp_path):
    engine = engine_of_one_layer(runtime(), tmp_path, sparse(WIDTH, WIDTH), (1, 8192, 8192))
    assert engine.eligible == 1
    assert engine.chosen in (0, 1)
    assert any(layer.is_sparse for layer in engine.layers) == bool(engine.chosen)
    (tmp_path / "dense").mkdir()
    dense = engine_of_one_layer(runtime(), tmp_path / "dense", sparse(WIDTH, WIDTH, axis=1), (1, 8192, 8192))
    assert not dense.eligible
    assert not dense.chosen


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-resnet"])
def test_the_main_job_keeps_every_promise(runtime, name, tmp_path):
    recipe = (
        f"export{{model={name},backend={runtime.name},samples=32}} | sparsify{{pattern=2:4,method=wanda,samples=16}}"
    )
    report = export(None, recipe, output=tmp_path / "out")
    assert report, report.promises
    assert report.ran_in == runtime.name
    assert report.latency
    built = building.build(tmp_path / "out")
    assert built, built.promises


@pytest.mark.parametrize("kernel", ["cuSPARSELt", "CUTLASS"])
def test_torchs_own_sparse_kernels_compute_the_dense_product(kernel):
    from benchmarks import gpu

    if why := gpu.why_not(kernel):
        pytest.skip(why)
    W, x = gpu.pruned(768, 768, torch.float16), torch.randn(128, 768, device="cuda", dtype=torch.float16)
    found = gpu.sparse(W, kernel, x)()
    torch.testing.assert_close(found, torch.nn.functional.linear(x, W), rtol=2e-2, atol=5e-1)
