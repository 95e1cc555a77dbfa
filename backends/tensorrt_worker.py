"""TensorRT in a process of its own: the only file that imports it; besides it, the standard library alone.

    python -I tensorrt_worker.py < request

A request is one line of JSON: `command` (probe, build, time or serve), `package` (tensorrt or tensorrt_rtx), and what
the command takes. Every answer is one line of JSON too: any number of {"event": "progress", ...}, then one that is
{"ok": true, ...} or {"ok": false, "error": KIND, "message": ...} with KIND one of not-installed, no-gpu, parse, build,
run. Tensors follow a line that lists them, as raw bytes. The same source serves TensorRT 10, 11, and TensorRT for RTX.

A process of its own because the first logger of a process serves all later builders, and because a crash of the
builder must not take hours of pruning with it.
"""

import ctypes
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Feeds = Mapping[str, tuple[tuple[int, ...], bytes]]  # name -> shape, values

SIZES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT64": 8, "INT32": 4, "INT8": 1, "UINT8": 1, "BOOL": 1, "FP8": 1}
TAIL = 20  # lines of the log that come with a failure
WARM_UP, ROUNDS = 10, 100


class Failed(Exception):
    """What the parent turns into an error of its own. kind: not-installed, no-gpu, parse, build or run."""

    def __init__(self, kind: str, message: str, **details: Any):
        super().__init__(message)
        self.kind, self.details = kind, details


# *** the pipe ***


class Pipe:
    """JSON lines and raw tensors over stdin and stdout; whatever a library prints goes to stderr instead."""

    def __init__(self) -> None:
        self.input = sys.stdin.buffer
        self.output = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self.lock = threading.Lock()  # TensorRT reports progress from several threads

    def read(self) -> Any:
        line = self.input.readline()
        return json.loads(line) if line.strip() else None

    def write(self, message: Mapping[str, Any], chunks: Iterable[bytes] = ()) -> None:
        with self.lock:
            self.output.write(json.dumps(message).encode() + b"\n")
            for chunk in chunks:
                self.output.write(chunk)
            self.output.flush()

    def read_tensors(self) -> Feeds | None:
        """[{"name", "shape", "size"}, ...] and then their bytes -> {name: (shape, bytes)}; None at the end."""
        header = self.read()
        if header is None:
            return None
        return {one["name"]: (tuple(one["shape"]), self.input.read(one["size"])) for one in header["tensors"]}

    def write_tensors(self, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        """{name: (data type, shape, bytes)}."""
        listed = [
            {"name": name, "dtype": dtype, "shape": list(shape), "size": len(data)}
            for name, (dtype, shape, data) in tensors.items()
        ]
        self.write({"ok": True, "tensors": listed}, [data for _, _, data in tensors.values()])


# *** TensorRT ***


def load(package: str) -> Any:
    try:
        if package == "tensorrt_rtx":
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
    except (ImportError, OSError) as error:
        raise Failed("not-installed", f"{type(error).__name__}: {error}") from None
    return trt


def make_log(trt: Any) -> Any:
    """A logger that keeps what matters; it must outlive all that it is given to.

    Verbose lines are hundreds of megabytes for a large model; those on sparsity alone are kept.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name != "VERBOSE" or "(Sparsity)" in message:
                self.lines.append(f"[{severity.name}] {message}")

        def worst(self) -> list[str]:
            told = [line for line in self.lines if line.startswith(("[ERROR]", "[INTERNAL_ERROR]", "[WARNING]"))]
            return told[-TAIL:]

    log = Log()
    trt.init_libnvinfer_plugins(log, "")  # the parser turns some operators into plugins
    return log


def make_monitor(trt: Any, pipe: Pipe) -> Any:
    """Tells the parent which phase the builder is in, and how far."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                pipe.write({"event": "progress", "name": phase_name, "step": step + 1, "of": self.steps[phase_name]})
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


# *** commands ***


def probe(request: Request, pipe: Pipe) -> None:
    """The version that is installed, and how many GPUs the driver sees."""
    trt = load(request["package"])
    pipe.write({"ok": True, "version": trt.__version__, "devices": n_devices()})


def build(request: Request, pipe: Pipe) -> None:
    """Build one engine.

    onnx, engine: paths in and out. log, layers: where the log and the inspector's JSON go. cache: the timing cache, or
    null to keep none.
    sparse: the flag SPARSE_WEIGHTS. profiles: [{input: [min, opt, max]}]. workspace: bytes, or null for all there are.
    level: 0 to 5. flags: more names of trt.BuilderFlag. needs_device: whether there is no building without a GPU.
    """
    trt = load(request["package"])
    devices = n_devices()
    if request["needs_device"] and not devices:
        raise Failed("no-gpu", "the CUDA driver finds no GPU")
    log = make_log(trt)
    try:
        answer = _build(trt, log, request, pipe)
    finally:
        Path(request["log"]).write_text("\n".join(log.lines) + "\n", encoding="utf-8")
    why = _listed(trt, log, request) if devices else "finds no GPU here to run it on"
    pipe.write({"ok": True, "version": trt.__version__, "why": why, **answer})


def _listed(trt: Any, log: Any, request: Request) -> str:
    """List the engine's layers; why this GPU does not load it, or ""."""
    try:
        layers = inspect(trt, log, request["engine"])
    except Failed as failure:
        if request["needs_device"]:  # it was built for this very GPU
            raise
        return f"cannot load it on this GPU ({reason(failure.details['log'])})"
    Path(request["layers"]).write_text(layers, encoding="utf-8")
    return ""


def reason(log: list[str]) -> str:
    """What the last error of a log says, without the function and the line of TensorRT's source that it names."""
    errors = [line.removeprefix("[ERROR] ") for line in log if line.startswith("[ERROR]")]
    if not errors:
        return "no reason given"
    found = re.search(r"\((.+?)(?: In \w+ at \S+)?\)$", errors[-1])
    return (found[1] if found else errors[-1]).rstrip(".")


def _build(trt: Any, log: Any, request: Request, pipe: Pipe) -> dict[str, Any]:
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # the factory returned a null pointer: no driver, or one too old
        raise Failed("no-gpu", str(error), log=log.worst()) from None
    network = parse(trt, log, builder, request["onnx"])
    config = builder.create_builder_config()
    monitor = make_monitor(trt, pipe)  # as long as config
    config.progress_monitor = monitor
    configure(trt, config, request)
    for shapes in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        config.add_optimization_profile(profile)
    cache = _timing_cache(config, request["cache"])
    start = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - start
    if plan is None:
        raise Failed("build", "the builder returned no engine", log=log.worst())
    Path(request["engine"]).write_bytes(plan)
    if cache is not None:
        Path(request["cache"]).write_bytes(cache.serialize())
    return {"seconds": seconds, "bytes": plan.nbytes, "n_layers": network.num_layers}


def network_flags(trt: Any) -> int:
    """A network whose types are the file's own, in every version: the bits moved between 10 and 11."""
    members = trt.NetworkDefinitionCreationFlag.__members__
    return sum(1 << int(members[name]) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in members)


def parse(trt: Any, log: Any, builder: Any, path: str) -> Any:
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):  # by its path, so that the data file beside it is found
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        found = [{"node": e.node_name(), "op": e.node_operator(), "message": e.desc()} for e in errors]
        raise Failed("parse", found[0]["message"] if found else "no reason given", errors=found, log=log.worst())
    return network


def configure(trt: Any, config: Any, request: Request) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector names no tactics
    config.builder_optimization_level = request["level"]
    if request["workspace"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    for name in (*(["SPARSE_WEIGHTS"] if request["sparse"] else []), *request["flags"]):
        member = trt.BuilderFlag.__members__.get(name)
        if member is None:
            raise Failed("build", f"TensorRT {trt.__version__} has no builder flag {name}")
        config.set_flag(member)


def inspect(trt: Any, log: Any, path: str) -> str:
    """The engine's layers and their tactics, as JSON."""
    runtime = trt.Runtime(log)
    engine = _deserialize(runtime, log, path)
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def time_engines(request: Request, pipe: Pipe) -> None:
    """Milliseconds per call of each engine on the same tensors, in turn, copies not counted."""
    trt = load(request["package"])
    cuda, log = _device(), make_log(trt)
    sessions = [Session(trt, cuda, log, path) for path in request["engines"]]
    feeds = pipe.read_tensors() or {}
    for session in sessions:
        session.put(feeds)
        for _ in range(WARM_UP):
            session.enqueue()
        cuda.wait()
    times: list[list[float]] = [[] for _ in sessions]
    for round_ in range(ROUNDS):
        order = range(len(sessions)) if round_ % 2 == 0 else reversed(range(len(sessions)))
        for index in order:
            times[index].append(cuda.time(sessions[index].enqueue))
    pipe.write({"ok": True, "milliseconds": times, "device": cuda.name()})


def serve(request: Request, pipe: Pipe) -> None:
    """Run an engine on every set of tensors that comes in, until none comes."""
    trt = load(request["package"])
    session = Session(trt, _device(), make_log(trt), request["engine"])
    pipe.write({"ok": True, "inputs": session.inputs})
    while (feeds := pipe.read_tensors()) is not None:
        session.put(feeds)
        session.enqueue()
        pipe.write_tensors(session.get())


class Session:
    """An engine with its buffers on the GPU."""

    def __init__(self, trt: Any, cuda: "Cuda", log: Any, path: str):
        self.trt, self.cuda, self.log = trt, cuda, log
        runtime = trt.Runtime(log)
        self.runtime = runtime  # must outlive the engine
        self.engine = engine = _deserialize(runtime, log, path)
        self.context = engine.create_execution_context()
        self.buffers: dict[str, tuple[int, int]] = {}  # name -> (address, bytes)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]

    def put(self, feeds: Feeds) -> None:
        """Copy the inputs in, {name: (shape, bytes)}, and make room for the outputs."""
        context = self.context
        for name in self.inputs:
            shape, data = feeds[name]
            if not context.set_input_shape(name, shape):
                raise Failed("run", f"the engine's profile does not take {name} of shape {shape}", log=self.log.worst())
            self.cuda.copy_in(self._room(name, len(data)), data)
        for name in self.outputs:
            self._room(name, self._shape_and_size(name)[1])

    def enqueue(self) -> None:
        context = self.context
        if not context.execute_async_v3(self.cuda.stream.value or 0):
            raise Failed("run", "the engine did not run", log=self.log.worst())

    def get(self) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
        """{name: (data type, shape, bytes)} of the outputs."""
        self.cuda.wait()
        found = {}
        for name in self.outputs:
            shape, size = self._shape_and_size(name)
            found[name] = (self._dtype(name), shape, self.cuda.copy_out(self.buffers[name][0], size))
        return found

    def _room(self, name: str, size: int) -> int:
        address, have = self.buffers.get(name, (0, -1))
        if have < size:
            self.cuda.free(address)
            address = self.cuda.allocate(max(size, 1))
            self.buffers[name] = (address, size)
        self.context.set_tensor_address(name, address)
        return address

    def _shape_and_size(self, name: str) -> tuple[tuple[int, ...], int]:
        context = self.context
        shape = tuple(context.get_tensor_shape(name))
        if any(n < 0 for n in shape):
            raise Failed("run", f"the shape of the output {name} depends on data", log=self.log.worst())
        return shape, math.prod(shape) * SIZES[self._dtype(name)]

    def _dtype(self, name: str) -> str:
        engine = self.engine
        return engine.get_tensor_dtype(name).name


def _deserialize(runtime: Any, log: Any, path: str) -> Any:
    engine = runtime.deserialize_cuda_engine(Path(path).read_bytes())
    if engine is None:
        raise Failed("run", "the engine cannot be loaded on this GPU", log=log.worst())
    return engine


def _timing_cache(config: Any, path: str | None) -> Any:
    """The cache in the file, or an empty one; None when there is no file to keep it in."""
    if path is None:
        return None
    cache = config.create_timing_cache(Path(path).read_bytes() if Path(path).exists() else b"")
    config.set_timing_cache(cache, False)
    return cache


# *** CUDA ***


class Cuda:
    """What running an engine takes of the CUDA driver, by ctypes: one device, one stream."""

    def __init__(self, library: str | None = None):
        self.library = ctypes.CDLL(library or _DRIVER)
        self._call("cuInit", ctypes.c_uint(0))
        self.device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self.device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)  # the one TensorRT uses
        self._call("cuCtxSetCurrent", context)
        self.stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(self.stream), ctypes.c_uint(0))
        self.events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in self.events:
            self._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(0))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise Failed("run", f"{name} failed with CUDA error {code}")

    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, ctypes.c_int(256), self.device)
        return text.value.decode()

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def free(self, address: int) -> None:
        if address:
            self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def copy_in(self, address: int, data: bytes) -> None:
        if data:
            self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_char_p(data), ctypes.c_size_t(len(data)))

    def copy_out(self, address: int, size: int) -> bytes:
        data = ctypes.create_string_buffer(max(size, 1))
        if size:
            self._call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return data.raw[:size]

    def wait(self) -> None:
        self._call("cuStreamSynchronize", self.stream)

    def time(self, work: Callable[[], None]) -> float:
        """Milliseconds between an event before and one after the work on the stream."""
        before, after = self.events
        self._call("cuEventRecord", before, self.stream)
        work()
        self._call("cuEventRecord", after, self.stream)
        self._call("cuEventSynchronize", after)
        found = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(found), before, after)
        return found.value


_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def n_devices() -> int:
    """How many GPUs the driver sees; 0 without a driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    found = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(found)):
        return 0
    return found.value


def _device() -> "Cuda":
    if not n_devices():
        raise Failed("no-gpu", "the CUDA driver finds no GPU")
    return Cuda()


COMMANDS = {"probe": probe, "build": build, "time": time_engines, "serve": serve}


def main() -> int:
    pipe = Pipe()
    request = pipe.read()
    try:
        COMMANDS[request["command"]](request, pipe)
    except Failed as failure:
        pipe.write({"ok": False, "error": failure.kind, "message": str(failure), **failure.details})
        return 1
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):  # the parent has gone
        sys.exit(main())
