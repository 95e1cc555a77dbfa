"""Who may import whom: the house stays in order because this test walks its imports."""

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("passes", "backends", "models")
HEAVY = {"torch", "transformers", "onnxruntime", "tensorrt", "tensorrt_rtx"}


def sources() -> dict[str, ast.Module]:
    """File (`passes/sparsify.py`) -> its syntax tree; the links inside compressor/ are not followed."""
    files = [path for part in ("compressor", *PARTS) for path in sorted((ROOT / part).rglob("*.py"))]
    unique = {path.resolve().relative_to(ROOT.resolve()).as_posix(): path for path in files}
    return {name: ast.parse(path.read_text(), name) for name, path in unique.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a tree imports, at its top or inside a function; `from a import b` may mean `a` or `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def home(module: str) -> str | None:
    """The part of the house a module lies in; None when it is not ours."""
    names = module.split(".")
    if names[0] != "compressor" or len(names) == 1:
        return None
    if names[1] in PARTS:
        return names[1]
    if names[1] == "__init__":
        return "front door"
    return "command line" if names[1] in ("cli", "__main__") else "core"


def violations(file: str, tree: ast.AST) -> Iterator[str]:
    own = home("compressor." + file.removeprefix("compressor/").removesuffix(".py").replace("/", "."))
    # The front door offers names of every part, each loaded on first use.
    allowed = {None, "core", own, *(PARTS if own == "front door" else ())}
    for module in imported(tree):
        if module.startswith("."):
            yield f"{file}: a relative import of {module}"
        elif module.split(".")[0] in PARTS:
            yield f"{file}: {module} instead of compressor.{module}, a second copy of the module"
        elif home(module) not in allowed:
            yield f"{file}: {own} imports {module}"


def importers(package: str) -> set[str]:
    """The files that import a package or anything in it."""
    return {
        file for file, tree in sources().items() if any(module.split(".")[0] == package for module in imported(tree))
    }


def test_the_core_imports_the_core_and_passes_backends_and_models_never_each_other():
    assert not [line for file, tree in sources().items() for line in violations(file, tree)]


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("passes/a.py", "from compressor.graph import Graph", ""),
        ("passes/a.py", "from compressor.passes.masks import nm_keep", ""),
        ("passes/a.py", "import torch", ""),
        ("compressor/__init__.py", "from compressor.models.python import Model", ""),
        ("compressor/cli.py", "from compressor import pipeline", ""),
        ("passes/a.py", "from compressor import backends", "passes imports compressor.backends"),
        ("models/a.py", "def f():\n    import compressor.passes.masks", "models imports compressor.passes.masks"),
        ("backends/a.py", "from compressor.cli import main", "backends imports compressor.cli"),
        ("compressor/graph.py", "from compressor.models import zoo", "core imports compressor.models"),
        ("compressor/graph.py", "import compressor.cli", "core imports compressor.cli"),
        ("compressor/cli.py", "from compressor.models import zoo", "command line imports compressor.models"),
        ("compressor/graph.py", "from .sites import WeightSite", "a relative import"),
        ("models/a.py", "from passes.masks import nm_keep", "a second copy"),
    ],
)
def test_the_walk_tells_a_forbidden_import_from_an_allowed_one(file, line, reason):
    found = list(violations(file, ast.parse(line)))
    assert bool(found) == bool(reason)
    assert all(reason in text for text in found)


def test_each_runtime_is_imported_in_one_file_and_transformers_only_by_models():
    assert importers("onnxruntime") == {"backends/onnxruntime.py"}
    assert importers("tensorrt") == importers("tensorrt_rtx") == {"backends/tensorrt_worker.py"}
    assert {file.split("/")[0] for file in importers("transformers")} == {"models"}


def test_the_worker_imports_the_standard_library_and_tensorrt():
    found = {module.split(".")[0] for module in imported(sources()["backends/tensorrt_worker.py"])}
    assert found - sys.stdlib_module_names == {"tensorrt", "tensorrt_rtx"}


# *** the command line answers at once ***

HELP = "import sys\nsys.argv = ['compress', '--help']\nfrom compressor.cli import main\nmain()"


def test_the_front_door_loads_nothing_until_asked():
    code = f"import compressor, sys; sys.exit(len({HEAVY} & sys.modules.keys()))"
    assert python(code).returncode == 0


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def command_line() -> None:
    if not (ROOT / "compressor" / "cli.py").exists() and not (ROOT / "compressor" / "cli").exists():
        pytest.skip("there is no command line yet")


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize("code", ["import sys\nimport compressor.cli", HELP], ids=["import", "help"])
def test_the_command_line_loads_no_framework_until_it_works(code):
    report = f"import atexit, sys\natexit.register(lambda: print('loaded:', *({HEAVY} & sys.modules.keys())))\n"
    done = python(report + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


@pytest.mark.usefixtures("command_line")
def test_help_is_there_before_anyone_waits_for_it():
    limit = 1.0 if os.environ.get("CI") else 0.5
    seconds = []
    for _ in range(3):
        start = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Usage" in python(HELP).stdout
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor: what else the machine does at the same time says nothing about us.
        seconds.append(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime)
    assert min(seconds) < limit
