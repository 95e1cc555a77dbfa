"""Runtimes that compile an engine: what is proved where it runs, what is written elsewhere, and who finishes."""

import dataclasses
import html
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compressor import onnx_file, registry
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.backends.tensorrt import TensorRT, TensorRTRTX
from compressor.cli import entry
from compressor.commands import building, checking
from compressor.commands.planning import plan
from compressor.driver import export
from compressor.engine import Engine, Layer, Verdict
from compressor.errors import BackendError, BuildError, NoDeviceError, RecipeError, SourceError
from compressor.proof import finish
from compressor.proof.finish import engine_promises, read_reference
from compressor.proof.latency import compare
from compressor.proof.report import Promise, Report, SiteRecord
from compressor.recipe import Recipe

PRUNE = "sparsify{pattern=2:4,method=magnitude,refit=0}"
FIT, RAN = "sparse kernels can take what is sparse", "the engine is built and has run"
PARITY = "the artifact computes what torch computes"

pytestmark = pytest.mark.usefixtures("quick")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
rtx = pytest.mark.skipif(not TensorRTRTX().probe().version, reason="not installed: pip install -e '.[dev]'")


@pytest.fixture(autouse=True)
def quick_beside(monkeypatch):
    """Timing in ONNX Runtime that takes no time."""
    for module in (building, finish):
        monkeypatch.setattr(module, "compare", lambda runs, name, feeds, **_: compare(runs, name, feeds, rounds=(4, 4)))


def mlp() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)), torch.randn(
        3, 32
    )


def run(folder: Path, backend: str, settings: str = "") -> Report:
    return export(mlp(), f"export{{backend={backend}{settings}}} | {PRUNE}", output=folder)


def promise(report: Report | building.Built, name: str) -> Promise:
    [found] = [one for one in report.promises if one.name == name]
    return found


# *** a runtime whose engine runs on any machine ***


class Anywhere(TensorRT):
    """TensorRT's file and rules, with ONNX Runtime as the engine and a log and kernels as TensorRT reports them."""

    name = "anywhere"
    failure: BackendError | None = None
    skew = 0.0

    def build_engine(self, folder: Path, progress: object = None) -> Engine:
        if self.failure:
            raise self.failure
        layers = (Layer("0", "sm80_sparse_gemm", True, "0.weight"), Layer("2", "sm80_gemm", False, "2.weight"))
        return Engine("Anywhere 1.0", True, True, seconds=0.1, bytes=9, eligible=2, chosen=1, layers=layers)

    def open(self, folder: Path, threads: int = 0) -> Callable:
        inner = OnnxRuntime().open(folder, threads)
        return lambda feeds: {name: x * (1 + self.skew) for name, x in inner(feeds).items()}

    def time_engines(self, folder: Path, feeds: object) -> dict[str, list[float]]:
        return {"dense": [2.0, 2.2, 2.1, 2.0], "sparse": [1.0, 1.1, 1.0, 1.0]}


@pytest.fixture
def anywhere(monkeypatch):
    monkeypatch.setitem(registry._BUILT_IN["backends"], "anywhere", f"{__name__}:Anywhere")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Anywhere.__module__])
    registry.names.cache_clear()
    yield Anywhere
    registry.names.cache_clear()


def test_an_engine_that_runs_is_what_is_scored_and_timed(anywhere, tmp_path):
    report = run(tmp_path / "out", "anywhere")
    assert report, report.promises
    assert report.dtype == "float16"
    assert report.ran_in == "anywhere"
    assert promise(report, RAN).detail == "Anywhere 1.0: eligible 2, chosen 1; dense was faster on 1"
    assert promise(report, FIT).detail == "2 of 2 sites are eligible"
    kernels = {site.name: (site.verdict, site.kernel) for site in report.sites}
    assert kernels["0.weight"] == ("eligible", "sparse sm80_sparse_gemm")
    assert kernels["2.weight"] == ("eligible", "dense sm80_gemm")
    assert kernels["4.weight"] == ("dense: 0% zeros", "")
    [row] = report.latency
    assert row.ratio["artifact"] == pytest.approx(2.0)
    assert set(row.latency) == {"dense", "artifact", "onnxruntime"}
    assert report.timed_on == "Anywhere 1.0, GPU"


def test_a_file_that_cannot_be_built_is_kept_and_says_why(anywhere, tmp_path, monkeypatch):
    monkeypatch.setattr(Anywhere, "failure", BuildError("cannot build the engine", found="no memory"))
    report = run(tmp_path / "out", "anywhere")
    assert not report
    assert promise(report, RAN).detail == "cannot build the engine found: no memory"
    assert promise(report, PARITY).met, "ONNX Runtime has run the file in its place"
    assert (tmp_path / "out" / "model.onnx").exists()


def test_build_finishes_the_artifact_against_what_torch_computed(anywhere, tmp_path, monkeypatch):
    run(tmp_path / "out", "anywhere")
    built = building.build(tmp_path / "out")
    assert built, built.promises
    assert json.loads((tmp_path / "out" / "engine.json").read_text())["engine"]["chosen"] == 1
    page = (tmp_path / "out" / "report.html").read_text()
    monkeypatch.setattr(Anywhere, "skew", 0.5)
    worse = building.build(tmp_path / "out")
    assert not worse
    [parity] = [one.detail for one in worse.promises if not one.met]
    assert html.escape(parity) not in page
    assert html.escape(parity) in (tmp_path / "out" / "report.html").read_text()


def test_lengths_that_were_asked_for_are_timed_too(anywhere, tmp_path):
    run(tmp_path / "out", "anywhere", ',shapes=["batch=1:16:16"]')
    reference = read_reference(tmp_path / "out")
    assert {name: next(iter(feeds.values())).shape[0] for name, (feeds, _) in reference.items()}["usual shapes"] == 16
    assert json.loads((tmp_path / "out" / "build.json").read_text())["profiles"][0].popitem()[1][1][0] == 16


# *** a machine without the device ***


@without_gpu
def test_without_a_gpu_all_but_the_engine_is_written_and_the_command_that_finishes_is_named(tmp_path):
    output = tmp_path / "out"
    report = run(output, "tensorrt")
    assert not report
    assert [one.name for one in report.promises if not one.met] == [RAN]
    assert promise(report, RAN).detail.endswith(f"; on a GPU host: compress build {output}")
    assert report.ran_in == "onnxruntime"
    assert report.engine is not None
    assert not report.engine.is_built
    assert report.latency == ()
    names = {path.name for path in output.iterdir()}
    assert names >= {"model.onnx", "model.onnx.data", "build.json", "run.json", "reference.safetensors", "report.json"}
    assert not {path for path in names if path.endswith(".engine")}
    assert Recipe.read(output).dtype == "float16"
    with pytest.raises(NoDeviceError, match="cannot build the engine"):
        building.build(output)


@rtx
@without_gpu
def test_tensorrt_for_rtx_builds_the_engine_and_says_that_it_has_not_run(tmp_path):
    report = run(tmp_path / "out", "tensorrt-rtx")
    assert [one.name for one in report.promises if not one.met] == [RAN]
    assert report.engine is not None
    assert report.engine.is_built
    assert (tmp_path / "out" / "sparse.engine").stat().st_size == report.engine.bytes
    assert "finds no GPU here to run it on" in promise(report, RAN).detail
    built = building.build(tmp_path / "out")
    assert built.engine.is_built
    assert not built


@rtx
@without_gpu
@pytest.mark.slow
def test_a_pruned_and_quantized_model_is_built_in_half_precision_around_its_codes(tmp_path):
    recipe = f"export{{model=tiny-gpt2,backend=tensorrt-rtx,samples=4}} | {PRUNE} | quantize{{kind=int8,samples=4}}"
    report = export(None, recipe, output=tmp_path / "out")
    assert [one.name for one in report.promises if not one.met] == [RAN]
    assert report.engine is not None
    assert report.engine.is_built
    assert (report.dtype, report.ran_in) == ("float16", "onnxruntime")
    assert "16 weights in int8 codes; all else is float16" in report.notes
    codes = [site for site in report.sites if site.status == "changed"]
    assert {(site.dtype, site.found, site.verdict.partition(";")[0]) for site in codes} == {("int8", "2:4", "eligible")}
    stored = onnx_file.read(tmp_path / "out" / "model.onnx").graph.initializers.values()
    assert {value.dtype.name for value in stored if value.dtype} == {"FLOAT16", "INT8", "INT64", "BOOL"}


@without_gpu
def test_a_type_that_onnx_runtime_cannot_run_is_not_scored_and_says_so(tmp_path):
    report = run(tmp_path / "out", "tensorrt", ",dtype=bfloat16")
    assert [one.name for one in report.promises if not one.met] == [PARITY, RAN]
    assert (report.parity, report.scores, report.ran_in) == (None, None, "")
    assert promise(report, FIT).met


@without_gpu
def test_single_precision_has_no_sparse_kernels_and_that_is_a_promise_not_met(tmp_path):
    report = run(tmp_path / "out", "tensorrt", ",dtype=float32")
    assert not promise(report, FIT).met
    assert "0 of 2 sites are eligible; not 0.weight (dtype: float32" in promise(report, FIT).detail
    assert promise(report, PARITY).met


def test_shapes_are_for_engines_and_are_refused_elsewhere(tmp_path):
    with pytest.raises(RecipeError, match="builds for all shapes"):
        run(tmp_path / "out", "onnxruntime", ',shapes=["batch=8"]')


def test_a_plan_refuses_the_shapes_that_export_would():
    with pytest.raises(RecipeError, match="no axis of this model is called 'sequence'"):
        plan(mlp(), f'export{{backend=tensorrt,shapes=["sequence=8"]}} | {PRUNE}')
    assert plan(mlp(), f'export{{backend=tensorrt,shapes=["batch=8"]}} | {PRUNE}').backend == "tensorrt"


def test_the_kernels_that_a_ratio_asked_for_are_no_promise():
    engine = Engine("TensorRT 11.4", True, True, eligible=0, chosen=0)
    site = SiteRecord("w", "linear", (8, 8), 1, "changed", asked="0.5", holds=True, verdict="group: no")
    assert [one.name for one in engine_promises([site], engine)] == [RAN]
    assert [one.met for one in engine_promises([dataclasses.replace(site, asked="2:4")], engine)] == [False, True]


# *** the command line ***


@pytest.fixture
def compress(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stopped:
                entry.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


def write_matmul(path: Path, axis: int) -> None:
    """Y = X W in float16 with W (16, 8) 2:4 along an axis."""
    w = np.moveaxis(np.tile(np.array([0, 1, 0, 1], np.float16), 32).reshape(-1, 16 if axis == 0 else 8), -1, axis)
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float16[b,16] X) => (float16[b,8] Y) { Y = MatMul(X, W) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(w), "W"))
    onnx.save(proto, path)


def test_check_passes_a_model_that_fits_and_fails_one_along_the_wrong_axis(compress, tmp_path):
    write_matmul(tmp_path / "right.onnx", axis=0)
    write_matmul(tmp_path / "wrong.onnx", axis=1)
    code, out, _ = compress("check", "right.onnx", "--backend", "tensorrt")
    assert (code, "1 of 1 weights are eligible" in out) == (0, True)
    code, out, _ = compress("check", "wrong.onnx", "--backend", "tensorrt")
    assert code == 1
    assert "2:4 holds along axis 1" in " ".join(out.split())
    code, out, err = compress("check", "wrong.onnx", "--json")
    assert (code, json.loads(out)["verdicts"][0]["rule"]) == (1, "axis")
    assert "1 with enough zeros are not, the first W" in err


def test_check_judges_the_file_of_an_artifact(compress, tmp_path):
    run(tmp_path / "out", "onnxruntime")
    code, out, _ = compress("check", "out")
    assert code == 1
    assert "float32; 2:4 kernels take" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("nowhere.onnx",), SourceError, "cannot find"),
        (("m.onnx", "onnxruntime"), RecipeError, "it has no sparse kernels"),
        (("m.onnx", "tensort"), RecipeError, "unknown backend"),
        (("broken.onnx",), BackendError, "cannot read broken.onnx as ONNX"),
    ],
)
def test_check_refuses_what_it_cannot_judge(arguments, error, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_matmul(tmp_path / "m.onnx", axis=0)
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(error, match=says):
        checking.check(*arguments)


def test_a_check_is_true_when_something_is_eligible_and_nothing_is_wasted():
    def verdict(is_eligible: bool, is_meant: bool) -> Verdict:
        return Verdict("w", "MatMul", (4, 4), 0, "float16", 0.5, is_eligible, is_meant)

    fits, wasted, dense = verdict(True, True), verdict(False, True), verdict(False, False)
    assert checking.Check("m", "tensorrt", (fits, dense))
    assert not checking.Check("m", "tensorrt", (fits, wasted))
    assert not checking.Check("m", "tensorrt", (dense,))
    assert not checking.Check("m", "tensorrt", ())


@without_gpu
def test_build_and_bench_say_what_is_missing_here(compress, tmp_path):
    run(tmp_path / "out", "tensorrt")
    code, _, err = compress("build", "out")
    assert code == 2
    assert "cannot build the engine of out here" in err
    assert "compress build out, on a host with an NVIDIA GPU" in err
    code, out, _ = compress("bench", "out")
    assert code == 1
    assert "onnxruntime" in out
    assert "holds no dense.engine" in " ".join(out.split())


def test_bench_times_an_artifact_of_onnx_runtime_and_build_has_nothing_to_do_there(compress, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(32, 16), torch.randn(3, 32)\n"
    )
    export("net.py:make", None, output=tmp_path / "out")
    start = time.perf_counter()
    code, out, _ = compress("bench", "out")
    assert (code, "onnxruntime" in out) == (0, True)
    assert time.perf_counter() - start < 60
    code, _, err = compress("build", "out")
    assert (code, "there is no engine to build: the artifact is for onnxruntime" in err) == (2, True)
