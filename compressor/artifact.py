"""An output folder that appears whole or not at all."""

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import OutputError

REPORT, RECIPE, ENGINE = "report.json", "recipe.yaml", "engine.json"
SCHEMA = 5
"""Of every JSON that is written; another one when a field changes its meaning or goes."""


def check_free(output: Path, overwrite: bool, mark: str = REPORT) -> None:
    """Raise OutputError unless the folder may be written. Called before any work is done.

    Only a folder that holds an artifact, which its mark tells, may be overwritten: a slip of the hand deletes nothing
    else. mark: the file that each artifact of this kind has.
    """
    if not output.exists():
        _check_parent(output)
        return
    if output.is_dir() and not any(output.iterdir()):
        return
    is_artifact = (output / mark).exists()
    if is_artifact and not overwrite:
        raise OutputError(f"{output} already exists", hint="--overwrite, or another --output")
    if not is_artifact:
        raise OutputError(
            f"{output} already exists, and is not an artifact of Compressor that may be overwritten",
            found=", ".join(sorted(path.name for path in output.iterdir())[:6]) if output.is_dir() else "a file",
            hint="another --output",
        )


@contextmanager
def staged(output: Path, overwrite: bool, mark: str = REPORT) -> Iterator[Path]:
    """A folder beside `output` to write into; renamed to `output` at the end, deleted when anything fails.

    A killed process leaves only a hidden `.NAME.partial-PID`, which the next run with the same output removes.
    """
    output = output.resolve()
    # Sweeping may bring back an artifact, which then is in the way: sweep first.
    _sweep(output)
    check_free(output, overwrite, mark)
    staging = output.parent / f"{_prefix(output)}{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        yield staging
        _swap(staging, output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"the disk is full while writing {output}",
                found=f"{error.strerror}; nothing was left behind",
                hint="another --output",
            ) from None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def resumable(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, for what a run that was killed goes on from; removed when one ends well.

    It need not exist, neither at the start nor at the end.
    """
    folder = output.resolve().parent / f".{output.name}.kept"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def folder_size(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files in a folder that match a glob."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def _check_parent(output: Path) -> None:
    parent = next(parent for parent in output.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write into {parent}", hint="another --output")


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _swap(staging: Path, output: Path) -> None:
    old = output.parent / f"{staging.name}-old"
    if output.exists():
        output.rename(old)
    try:
        staging.rename(output)
    except BaseException:
        if old.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(output: Path) -> None:
    """Remove what killed runs left, unless the process that wrote it still lives."""
    prefix = _prefix(output)
    for path in output.parent.glob(f"{glob.escape(prefix)}*"):
        pid = path.name.removeprefix(prefix).removesuffix("-old")
        if not pid.isdigit() or _is_alive(int(pid)):
            continue
        if path.name.endswith("-old") and not output.exists():
            path.rename(output)  # killed between the two renames: the old artifact comes back
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # in a container every run may have the same number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
