"""The worker against the real Python bindings of TensorRT 10 and 11 and of TensorRT for RTX, and its own CUDA calls.

The libraries behind the bindings are proprietary, weigh a gigabyte and need a GPU. The bindings themselves weigh a
megabyte: with libraries that export the names they link to and return nothing, they show every class and method.
"""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from compressor.backends.tensorrt_child import WORKER

# What the worker's variables hold.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "cache": "ITimingCache", "plan": "IHostMemory", "runtime": "Runtime",
    "engine": "ICudaEngine", "inspector": "EngineInspector", "context": "IExecutionContext", "e": "ParserError",
}  # fmt: skip


def names_used(source: str) -> list[str]:
    """`Class.member` and `Class.member.member` for every name of TensorRT in the source."""
    chains = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    found = set()
    for chain in chains:
        first, _, rest = chain.partition(".")
        if first == "trt" and "__" not in rest:
            found.add(rest)
        elif first in CLASSES and "(" not in chain:
            found.add(f"{CLASSES[first]}.{rest.split('.')[0]}")
    return sorted(found)


CHECK = """
import functools, json, sys
import {module} as trt

def has(name):
    try:
        functools.reduce(getattr, name.split("."), trt)
    except AttributeError:
        return False
    return True

print(json.dumps([trt.__version__, [name for name in {names} if not has(name)]]))
"""


def missing(module: str, names: list[str], **environment: str) -> tuple[str, list[str]]:
    code = CHECK.format(module=module, names=names)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, absent = json.loads(done.stdout)
    return version, absent


def test_the_names_are_found_in_the_worker():
    names = names_used(WORKER.read_text())
    assert len(names) > 40
    assert {"Builder.create_network", "IBuilderConfig.set_flag", "ProfilingVerbosity.DETAILED"} <= set(names)


@pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="not installed: pip install -e '.[dev]'")
def test_tensorrt_for_rtx_has_all_that_the_worker_calls():
    names = names_used(WORKER.read_text())
    _, absent = missing("tensorrt_rtx", names)
    assert absent == []
    assert missing("tensorrt_rtx", ["IBuilderConfig.max_workspace_size"])[1], "what is gone is missed"


# *** the bindings of TensorRT, with libraries that do nothing ***

STUB = """
void *createInferBuilder_INTERNAL(void *l, int v) { return 0; }
void *createInferRefitter_INTERNAL(void *e, void *l, int v) { return 0; }
void *createInferRuntime_INTERNAL(void *l, int v) { return 0; }
void *createNvOnnxParser_INTERNAL(void *n, void *l, int v) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *r, void *l, int v) { return 0; }
void *getBuilderPluginRegistry(int c) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *l, const char *n) { return 0; }
"""
BINDINGS = {
    "11": "tensorrt-cu13-bindings==11.*",
    "10": "tensorrt-cu13-bindings==10.*",
    "10.0": "tensorrt-cu12-bindings==10.0.*",
}


def compiled(code: str, library: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library.with_suffix(".c").write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(library.with_suffix(".c"))], check=True)


def bindings(package: str, folder: Path) -> dict[str, str]:
    """The environment in which `import tensorrt` finds the bindings of one version."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), package]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{package} cannot be downloaded: {done.stderr.strip().splitlines()[-1]}")
    site = folder / "site"
    (site / "tensorrt.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__ as __version__\n"
    )
    major = package.split("==")[1].split(".")[0]
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        compiled(STUB, site / f"lib{name}.so.{major}")
    return {"PYTHONPATH": str(site), "LD_LIBRARY_PATH": str(site)}


@pytest.mark.slow
@pytest.mark.parametrize("version", BINDINGS)
def test_tensorrt_has_all_that_the_worker_calls(version, tmp_path):
    environment = bindings(BINDINGS[version], tmp_path)
    found, absent = missing("tensorrt", names_used(WORKER.read_text()), **environment)
    assert found.startswith(version)
    assert absent == []


@pytest.mark.slow
def test_a_flag_that_eleven_dropped_is_missed_there_and_found_in_ten(tmp_path):
    for version, expected in (("11", ["BuilderFlag.FP16"]), ("10", [])):
        environment = bindings(BINDINGS[version], tmp_path / version)
        assert missing("tensorrt", ["BuilderFlag.FP16"], **environment)[1] == expected


@pytest.mark.slow
@pytest.mark.parametrize(("version", "flags"), [("11", 0b01), ("10", 0b11), ("10.0", 0b11)])
def test_a_network_is_strongly_typed_in_every_version(version, flags, tmp_path):
    code = f"import runpy, tensorrt; print(runpy.run_path({str(WORKER)!r})['network_flags'](tensorrt))"
    environment = os.environ | bindings(BINDINGS[version], tmp_path)
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert int(done.stdout) == flags, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("version", BINDINGS)
def test_the_worker_runs_on_the_bindings_and_tells_that_there_is_no_builder(version, tmp_path):
    environment = bindings(BINDINGS[version], tmp_path)
    request = {
        "command": "build", "package": "tensorrt", "needs_device": False, "sparse": True, "onnx": "none.onnx",
        "log": str(tmp_path / "log"), "layers": "", "engine": "", "cache": None, "profiles": [], "workspace": None,
        "level": 3, "flags": [],
    }  # fmt: skip
    assert answer({"command": "probe", "package": "tensorrt"}, environment)["version"].startswith(version)
    failed = answer(request, environment)
    assert (failed["ok"], failed["error"]) == (False, "no-gpu")


def answer(request: dict, environment: dict[str, str]) -> dict:
    # As its parent runs it, but less isolated, which would hide the bindings; -P keeps our own tensorrt.py out.
    done = subprocess.run(
        [sys.executable, "-P", str(WORKER)], input=json.dumps(request) + "\n", env=os.environ | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def worker() -> ModuleType:
    """The worker's own names, in this process."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


# *** an engine that this GPU does not load ***

# What TensorRT for RTX 1.7.1 said on an H200.
HOPPER = (
    "[ERROR] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine cannot run on this GPU, which "
    "has compute capability 9.0. TensorRT-RTX does not support this compute capability, so the engine cannot be "
    "rebuilt for it. In throwUnlessComputeCapSupported at /_src/runtime/dispatch/runtime.cpp:84)"
)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ([], "no reason given"),
        (["[WARNING] slow"], "no reason given"),
        (["[ERROR] first", "[ERROR] out of memory"], "out of memory"),
        (["[WARNING] slow", HOPPER], HOPPER.partition("(")[2].partition(". In ")[0]),
    ],
    ids=["nothing", "warnings", "words", "hopper"],
)
def test_the_reason_is_the_last_error_without_where_in_tensorrt_it_was(log, said):
    assert worker().reason(log) == said


@pytest.mark.parametrize("needs_device", [True, False])
def test_an_engine_that_this_gpu_does_not_load_is_a_fault_only_where_it_was_built_for_it(needs_device, tmp_path):
    module, request = worker(), {"engine": "e", "layers": str(tmp_path / "layers"), "needs_device": needs_device}

    def refuses(trt: object, log: object, path: str) -> str:
        raise module.Failed("run", "the engine cannot be loaded on this GPU", log=[HOPPER])

    module.inspect = refuses
    if needs_device:
        with pytest.raises(module.Failed, match="cannot be loaded"):
            module._listed(None, None, request)
    else:
        assert "compute capability 9.0" in module._listed(None, None, request)
    assert not (tmp_path / "layers").exists()


# *** CUDA, with a driver whose device is this machine's memory ***

DRIVER = """
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <stdint.h>
typedef int CUresult; typedef uint64_t CUdeviceptr;
static double now(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
CUresult cuInit(unsigned f) { return f; }
CUresult cuDeviceGet(int *d, int i) { *d = 7; return i; }
CUresult cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)0x1234567890ab; return d != 7; }
CUresult cuCtxSetCurrent(void *c) { return c != (void *)0x1234567890ab; }
CUresult cuStreamCreate(void **s, unsigned f) { *s = (void *)0x7fffdeadbeef; return f; }
CUresult cuStreamSynchronize(void *s) { return s != (void *)0x7fffdeadbeef; }
CUresult cuDeviceGetName(char *t, int n, int d) { strncpy(t, "this machine's memory", n); return d != 7; }
CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) { *p = (CUdeviceptr)malloc(n); return n > (1ul << 40) ? 2 : 0; }
CUresult cuMemFree_v2(CUdeviceptr p) { free((void *)p); return 0; }
CUresult cuMemcpyHtoD_v2(CUdeviceptr p, const void *h, size_t n) { memcpy((void *)p, h, n); return 0; }
CUresult cuMemcpyDtoH_v2(void *h, CUdeviceptr p, size_t n) { memcpy(h, (void *)p, n); return 0; }
CUresult cuEventCreate(void **e, unsigned f) { *e = malloc(sizeof(double)); return f; }
CUresult cuEventRecord(void *e, void *s) { *(double *)e = now(); return s != (void *)0x7fffdeadbeef; }
CUresult cuEventSynchronize(void *e) { return !e; }
CUresult cuEventElapsedTime(float *ms, void *a, void *b) { *ms = *(double *)b - *(double *)a; return 0; }
"""


def test_its_cuda_calls_pass_addresses_sizes_and_values_whole(tmp_path):
    import time

    library = tmp_path / "libdriver.so"
    compiled(DRIVER, library)
    module = worker()
    cuda = module.Cuda(str(library))
    data = bytes(range(256)) * 3
    address = cuda.allocate(len(data))
    cuda.copy_in(address, data)
    assert cuda.copy_out(address, len(data)) == data, "zero bytes in the middle end nothing"
    assert cuda.copy_out(address, 0) == b""
    assert cuda.name() == "this machine's memory"
    assert 4 < cuda.time(lambda: time.sleep(0.005)) < 500
    cuda.wait()
    cuda.free(address)
    with pytest.raises(module.Failed, match="cuMemAlloc_v2 failed with CUDA error 2"):
        cuda.allocate(1 << 41)
