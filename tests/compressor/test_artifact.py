import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compressor import artifact
from compressor.artifact import REPORT, check_free, folder_size, resumable, staged
from compressor.errors import OutputError

DEAD = 2**22 + 1  # above the largest process number


def write(folder: Path, text: str = "new") -> None:
    (folder / REPORT).write_text(text)
    (folder / "data").mkdir()
    (folder / "data" / "weights").write_bytes(b"1234")


def an_artifact(folder: Path, text: str = "old") -> Path:
    folder.mkdir(parents=True)
    (folder / REPORT).write_text(text)
    (folder / "stale").write_text("of the old run")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(output: Path, error: BaseException, overwrite: bool = False) -> None:
    """A run that writes half of its artifact."""
    with staged(output, overwrite) as folder:
        write(folder)
        raise error


# *** whole or not at all ***


def test_the_folder_appears_whole_at_the_end(tmp_path):
    output = tmp_path / "a" / "b" / "out"
    with staged(output, overwrite=False) as folder:
        write(folder)
        assert not output.exists()
        assert folder.parent == output.parent  # the same file system, so that renaming is one step
    assert names(output) == ["data", REPORT]
    assert names(output.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError("a"), KeyboardInterrupt(), SystemExit(3), OSError(errno.EIO, "disk")])
def test_an_exception_leaves_nothing_and_keeps_its_type(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        fail(tmp_path / "out", error)
    assert caught.value is error
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_users_to_fix(tmp_path, number):
    with pytest.raises(OutputError, match="the disk is full") as caught:
        fail(tmp_path / "out", OSError(number, os.strerror(number)))
    assert caught.value.found == f"{os.strerror(number)}; nothing was left behind"
    assert names(tmp_path) == []


def test_overwriting_replaces_the_whole_folder(tmp_path):
    output = an_artifact(tmp_path / "out")
    with staged(output, overwrite=True) as folder:
        write(folder)
        assert (output / REPORT).read_text() == "old"
    assert names(output) == ["data", REPORT]
    assert names(tmp_path) == ["out"]


def test_a_run_that_fails_leaves_the_old_artifact_alone(tmp_path):
    output = an_artifact(tmp_path / "out")
    with pytest.raises(ValueError, match="too bad"):
        fail(output, ValueError("too bad"), overwrite=True)
    assert names(output) == [REPORT, "stale"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), KeyboardInterrupt()])
def test_a_failure_between_the_two_renames_brings_the_old_artifact_back(tmp_path, monkeypatch, error):
    output = an_artifact(tmp_path / "out")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(str(os.getpid())):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)), staged(output, overwrite=True) as folder:
        write(folder)
    assert (output / REPORT).read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_link_is_followed_and_stays_a_link(tmp_path):
    real = an_artifact(tmp_path / "disk" / "real")
    (tmp_path / "out").symlink_to(real)
    with staged(tmp_path / "out", overwrite=True) as folder:
        write(folder)
    assert (tmp_path / "out").is_symlink()
    assert (real / REPORT).read_text() == "new"
    assert names(tmp_path / "disk") == ["real"]


# *** killed runs ***

KILLED = """
import os, signal, sys
from pathlib import Path
from compressor import artifact
if sys.argv[2] == "between":
    artifact.shutil.rmtree = lambda *args, **kwargs: None
    rename = Path.rename
    def killing(self, target):
        if self.name.endswith(str(os.getpid())):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)
    Path.rename = killing
with artifact.staged(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "report.json").write_text("killed")
    if sys.argv[2] == "inside":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def kill(output: Path, where: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(output), where], check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_run_leaves_a_hidden_folder_that_the_next_one_removes(tmp_path):
    output = tmp_path / "out"
    kill(output, "inside")
    assert not output.exists()
    [left] = names(tmp_path)
    assert left.startswith(".out.partial-")
    with staged(output, overwrite=False) as folder:
        write(folder)
    assert names(tmp_path) == ["out"]


def test_a_run_killed_between_the_renames_loses_no_artifact(tmp_path):
    output = an_artifact(tmp_path / "out")
    kill(output, "between")
    assert not output.exists()
    # The old one comes back, and is not overwritten unless asked.
    with pytest.raises(OutputError, match="already exists"), staged(output, overwrite=False):
        pass
    assert (output / REPORT).read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "gpt2-[2:4]", "partial-1", "*"])
def test_what_is_swept_is_of_this_output_and_of_no_living_run(tmp_path, name):
    mine, others = tmp_path / f".{name}.partial-{DEAD}", [".other.partial-7", f".{name}.partial-{os.getppid()}"]
    for path in (mine, *(tmp_path / other for other in others)):
        path.mkdir()
    with staged(tmp_path / name, overwrite=False) as folder:
        write(folder)
    assert names(tmp_path) == sorted([*others, name])
    for other in others:
        (tmp_path / other).rmdir()


def test_a_leftover_with_our_own_number_is_in_nobodys_way(tmp_path):
    (tmp_path / f".out.partial-{os.getpid()}").mkdir()
    with staged(tmp_path / "out", overwrite=False) as folder:
        write(folder)
    assert names(tmp_path) == ["out"]


def test_a_run_of_another_user_counts_as_living(monkeypatch):
    def refused(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(artifact.os, "kill", refused)
    assert artifact._is_alive(DEAD)


# *** what may be written ***


def test_a_new_or_an_empty_folder_is_free(tmp_path):
    check_free(tmp_path / "new" / "deeper", overwrite=False)
    check_free(tmp_path, overwrite=False)
    assert names(tmp_path) == []


def test_an_artifact_is_free_only_when_overwriting_is_asked_for(tmp_path):
    output = an_artifact(tmp_path / "out")
    check_free(output, overwrite=True)
    with pytest.raises(OutputError, match="already exists") as caught:
        check_free(output, overwrite=False)
    assert caught.value.hint == "--overwrite, or another --output"


def test_a_folder_of_someone_else_is_never_free(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not an artifact of Compressor") as caught:
        check_free(tmp_path, overwrite=True)
    assert caught.value.found == "thesis.tex"
    with pytest.raises(OutputError), staged(tmp_path, overwrite=True):
        pass
    assert names(tmp_path) == ["thesis.tex"]


def test_a_file_is_never_free(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="not an artifact") as caught:
        check_free(tmp_path / "out", overwrite=True)
    assert caught.value.found == "a file"


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write into"):
        check_free(tmp_path / "file" / "out", overwrite=False)


def test_a_folder_without_permission_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact.os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot write into"):
        check_free(tmp_path / "out", overwrite=False)


def test_size_counts_the_files_that_match(tmp_path):
    write(tmp_path, "123")
    assert folder_size(tmp_path) == 3
    assert folder_size(tmp_path, "**/*") == 7
    assert folder_size(tmp_path, "*.onnx") == 0


# *** what a killed run goes on from ***


def half_way(output: Path) -> None:
    with resumable(output) as folder:
        folder.mkdir()
        (folder / "checkpoint").write_text("half way")
        raise KeyboardInterrupt


def test_what_is_kept_outlives_a_run_that_fails_and_goes_with_one_that_ends_well(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        half_way(output)
    assert names(tmp_path) == [".out.kept"]
    with resumable(output) as folder:
        assert (folder / "checkpoint").read_text() == "half way"
    assert names(tmp_path) == []
    with resumable(output) as folder:
        assert not folder.exists()
