"""The command line, run in this process: one import of torch serves all commands of a test."""

import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from compressor.cli import entry


@dataclass
class Ran:
    """What a command did: its exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


def compress(*arguments: object) -> Ran:
    """What a shell sees of `compress ARGUMENTS`, its output in pipes."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            mock.patch.object(sys, "argv", ["compress", *map(str, arguments)]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            entry.main()
    except SystemExit as stopped:
        return Ran(int(stopped.code or 0), out.getvalue(), err.getvalue())
    finally:
        signal.signal(signal.SIGTERM, before)
    raise AssertionError("main() ends with SystemExit")
