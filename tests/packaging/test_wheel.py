"""What is installed: the four folders as one package, with the zoo's files, and types that checkers can follow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def call(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    done = call(sys.executable, *arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, built from a copy so that nothing is written into the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "compressed"
    )
    shutil.copytree(ROOT, folder / "copy", symlinks=True, ignore=skip)
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "copy"), cwd=folder)
    [wheel] = folder.glob("*.whl")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


def test_every_source_file_is_installed_as_a_file(site):
    for part in ("passes", "backends", "models"):
        expected = {path.relative_to(ROOT) for path in (ROOT / part).rglob("*.py")}
        installed = {path.relative_to(site / "compressor") for path in (site / "compressor" / part).rglob("*.py")}
        assert installed == expected
    assert not [path for path in site.rglob("*") if path.is_symlink()]


def test_nothing_lands_beside_the_package(site):
    folders = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert folders == {"compressor", "bin"}
    assert (site / "bin" / "compress").is_file()


def test_the_zoo_is_installed_whole(site):
    zoo = site / "compressor" / "models" / "zoo"
    expected = {
        path.relative_to(ROOT / "models" / "zoo")
        for path in (ROOT / "models" / "zoo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path.relative_to(zoo) for path in zoo.rglob("*") if path.is_file() and path.suffix != ".pyc"} == expected
    assert {path.name for path in expected} >= {"model.safetensors", "config.json", "train.txt", "train.parquet"}


def test_what_the_page_of_a_report_is_made_of_is_installed(site):
    expected = {path.name for path in (ROOT / "compressor" / "page").iterdir() if path.is_file()}
    assert {path.name for path in (site / "compressor" / "page").iterdir() if path.is_file()} == expected
    assert {"page.html", "style.css", "search.js"} <= expected


def test_the_installed_package_runs_without_the_sources(site, tmp_path):
    code = "from compressor.models import zoo; print(zoo.folder('tiny-gpt2'))"
    assert python("-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip().startswith(str(site))


def test_a_type_checker_sees_into_every_part(site, tmp_path):
    assert (site / "compressor" / "py.typed").is_file()
    code = "from compressor.models import zoo\nfrom compressor.passes import masks\nzoo.nonsense\nmasks.nonsense"
    mypy = ["-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir", str(tmp_path)]
    found = call(sys.executable, *mypy, "-c", code, cwd=tmp_path, MYPYPATH=str(site)).stdout
    assert found.count('has no attribute "nonsense"') == 2, found
