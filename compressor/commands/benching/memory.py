"""The memory that a file takes: a fresh process opens and runs it, and says by how much its peak rose."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from compressor.commands.benching.feeds import Signature, signature
from compressor.commands.sampling import chooser, tokens
from compressor.graph import Run
from compressor.registry import load

STATUS = Path("/proc/self/status")


def peak(file: Path, threads: int, prompt: int, batch: int, sizes: dict[str, int]) -> int | None:
    """Bytes by which opening a file and running it raises the peak of a process; None when it fails there."""
    asked = json.dumps([str(file), threads, prompt, batch, sizes])
    command = [sys.executable, "-m", "compressor.commands.benching.memory", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def call(found: Signature, run: Run, prompt: int, batch: int, sizes: dict[str, int]) -> Callable[[], object]:
    """One use of a file: two tokens after a prompt from a language model, one call of any other."""
    if found.is_language_model:
        ids, empty = found.prompt(prompt), found.empty_cache()
        return lambda: list(islice(tokens(run, empty, ids, chooser(0, 0)), 2))
    feeds = found.sample(batch, sizes)
    return lambda: run(feeds)


def _main(file: str, threads: int, prompt: int, batch: int, sizes: dict[str, int]) -> int:
    found = signature(Path(file))
    backend = load("backends", "onnxruntime")()
    importlib.import_module(backend.name)  # the runtime itself is not what the file takes
    before = _start()
    run = backend.open(Path(file), threads)
    call(found, run, prompt, batch, sizes)()
    return max(_peak() - before, 0)


def _start() -> int:
    """Forget the peak of what was imported, where the system can; bytes that are held now."""
    if not STATUS.exists():
        return _peak()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    if STATUS.exists():
        return _status("VmHWM")
    import resource  # where there is no /proc, there may be none of it either

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes. getrusage would count what the parent held when it forked."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(_main(*json.loads(sys.argv[1])))
