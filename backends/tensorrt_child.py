"""The parent's side of the worker: requests in, answers out, its failures as errors of ours."""

import contextlib
import json
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from compressor.errors import BackendError, BuildError, InternalError, NoDeviceError, NotInstalledError, ParseError
from compressor.graph import Feeds
from compressor.progress import QUIET, Progress

WORKER = Path(__file__).with_name("tensorrt_worker.py")
_DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64, "INT32": torch.int32,
    "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_PROGRAM = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
_INSTALL = {"tensorrt": "pip install 'compressor[tensorrt]'", "tensorrt_rtx": "pip install 'compressor[tensorrt-rtx]'"}


def ask(
    request: Mapping[str, Any], feeds: Feeds | None = None, progress: Progress = QUIET, folder: Path | None = None
) -> dict[str, Any]:
    """The worker's answer to one request; it works in the folder. Raises one of the BackendErrors."""
    with Child(request, progress, folder) as child:
        if feeds is not None:
            child.send(feeds)
        return child.answer()


class Child:
    """One worker. A `serve` request is answered, then each `send` by tensors, until the child is closed."""

    def __init__(self, request: Mapping[str, Any], progress: Progress = QUIET, folder: Path | None = None):
        self.package, self.progress = request["package"], progress
        command = [sys.executable, "-I", "-W", "ignore::DeprecationWarning", str(WORKER)]
        # A pipe that nobody reads would fill up and stop the child.
        self.told = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.told, cwd=folder
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin: BinaryIO = self.process.stdin  # type: ignore[assignment]
        self.stdout: BinaryIO = self.process.stdout  # type: ignore[assignment]
        self._finalizer = weakref.finalize(self, _end, self.process)
        self._write(json.dumps(request).encode() + b"\n")

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._finalizer()

    def send(self, feeds: Feeds) -> None:
        """Tensors by name: a line that lists them, then their bytes."""
        chunks = [(name, list(x.shape), _bytes(x)) for name, x in feeds.items()]
        header = {"tensors": [{"name": name, "shape": shape, "size": len(data)} for name, shape, data in chunks]}
        self._write(json.dumps(header).encode() + b"\n", *(data for _, _, data in chunks))

    def answer(self) -> dict[str, Any]:
        """The next answer; the builder's phases on the way to it are shown."""
        phase = ""
        with contextlib.ExitStack() as shown:
            while (message := self._message()).get("event") == "progress":
                if message["name"] != phase:
                    phase = message["name"]
                    shown.close()
                    step = shown.enter_context(self.progress.task(phase, message["of"]))
                step()
        return message if message["ok"] else _fail(self.package, message)

    def _message(self) -> dict[str, Any]:
        line = self.stdout.readline()
        return json.loads(line) if line else self._died()

    def tensors(self) -> dict[str, Tensor]:
        """The next answer's tensors, on the CPU."""
        found = {}
        for one in self.answer()["tensors"]:
            data = bytearray(self.stdout.read(one["size"]))
            kind = _DTYPES[one["dtype"]]
            flat = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
            found[one["name"]] = flat.reshape(one["shape"])
        return found

    def _write(self, *chunks: bytes) -> None:
        # A child that has failed reads no more; its answer says why.
        with contextlib.suppress(BrokenPipeError):
            for chunk in chunks:
                self.stdin.write(chunk)
            self.stdin.flush()

    def _died(self) -> NoReturn:
        code = self.process.wait()
        self.told.seek(0)
        told = self.told.read().decode(errors="replace").strip()
        if "Traceback" in told:
            raise InternalError(f"the worker of {_PROGRAM[self.package]} failed:\n{told}")
        raise BuildError(
            f"{_PROGRAM[self.package]} ended its process",
            found=f"exit code {code}{': ' + told.splitlines()[-1] if told else ''}",
            hint="more memory, or a smaller workspace in build.json",
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()  # type: ignore[union-attr]


def _bytes(x: Tensor) -> bytes:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def _fail(package: str, answer: Mapping[str, Any]) -> NoReturn:
    """The worker's failure as the error of its kind."""
    program, told = _PROGRAM[package], answer["message"]
    match answer["error"]:
        case "not-installed":
            raise NotInstalledError(f"{program} is not installed here", found=told, hint=_INSTALL[package])
        case "no-gpu":
            raise NoDeviceError(f"{program} finds no GPU here", found=told, hint="the same command on a GPU host")
        case "parse":
            node = answer["errors"][0] if answer.get("errors") else {"node": "", "op": ""}
            where = f" at the node {node['node']!r} ({node['op']})" if node["op"] else ""
            raise ParseError(f"{program} cannot read the ONNX file{where}", found=_first(told), node=node["node"])
        case "build":
            raise BuildError(f"{program} cannot build the engine", found=_tail(told, answer.get("log", ())))
    raise BackendError(f"{program} cannot run the engine", found=_tail(told, answer.get("log", ())))


def _first(told: str) -> str:
    """The first reason that is not the absence of a GPU, which a build without one repeats."""
    lines = [line.strip() for line in told.splitlines() if line.strip() and "cudaError 35" not in line]
    return next((line for line in lines if not line.startswith("Invalid Node")), lines[0] if lines else "")


def _tail(told: str, log: Sequence[str]) -> str:
    lines = [line for line in log if "cudaError 35" not in line]
    return "\n         ".join([told, *lines[-4:]])
