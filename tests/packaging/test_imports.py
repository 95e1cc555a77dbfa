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
DRIVER = ("driver", "run")
FLOORS = {
    "channels": "channels", "proof": "proof", "page": "page", "commands": "commands", "cli": "command line",
}  # fmt: skip
BELOW = {
    "core": set(),
    "channels": {"core"},
    "proof": {"core"},
    "page": {"core", "proof"},
    "driver": {"core", "proof", "page"},
    "commands": {"core", "channels", "proof", "page", "driver"},
    "command line": {"core", "channels", "proof", "page", "driver", "commands"},
    "passes": {"core", "channels", "proof"},
    "backends": {"core"},
    "models": {"core", "proof"},
    "front door": {"core", "proof", "driver", "commands", *PARTS},  # names of every part, each loaded on first use
}
"""What each part may import beside itself."""
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
    return FLOORS.get(names[1], "driver" if names[1] in DRIVER else "core")


def violations(file: str, tree: ast.AST) -> Iterator[str]:
    own = home("compressor." + file.removeprefix("compressor/").removesuffix(".py").replace("/", "."))
    assert own is not None
    allowed = {None, own, *BELOW[own]}
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


def test_every_part_imports_what_lies_below_it_and_passes_backends_and_models_never_each_other():
    assert not [line for file, tree in sources().items() for line in violations(file, tree)]


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("passes/a.py", "from compressor.graph import Graph", ""),
        ("passes/a.py", "from compressor.passes.masks import nm_keep", ""),
        ("passes/a.py", "import torch", ""),
        ("compressor/__init__.py", "from compressor.models.python import Model", ""),
        ("compressor/cli/entry.py", "from compressor import pipeline", ""),
        ("compressor/proof/parity.py", "from compressor.graph import Run", ""),
        ("passes/a.py", "from compressor import backends", "passes imports compressor.backends"),
        ("models/a.py", "def f():\n    import compressor.passes.masks", "models imports compressor.passes.masks"),
        ("backends/a.py", "from compressor.cli.entry import main", "backends imports compressor.cli.entry"),
        ("compressor/graph.py", "from compressor.models import zoo", "core imports compressor.models"),
        ("compressor/graph.py", "import compressor.cli.entry", "core imports compressor.cli.entry"),
        ("compressor/graph.py", "from compressor.proof import parity", "core imports compressor.proof"),
        ("compressor/proof/report.py", "from compressor import driver", "proof imports compressor.driver"),
        ("compressor/commands/planning.py", "import compressor.cli.entry", "commands imports compressor.cli"),
        ("compressor/cli/entry.py", "from compressor.models import zoo", "command line imports compressor.models"),
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

HELP = "import sys\nsys.argv = ['compress', '--help']\nfrom compressor.cli.entry import main\nmain()"


def test_the_front_door_loads_nothing_until_asked():
    code = f"import compressor, sys; sys.exit(len({HEAVY} & sys.modules.keys()))"
    assert python(code).returncode == 0


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", ["import sys\nimport compressor.cli.entry", HELP], ids=["import", "help"])
def test_the_command_line_loads_no_framework_until_it_works(code):
    report = f"import atexit, sys\natexit.register(lambda: print('loaded:', *({HEAVY} & sys.modules.keys())))\n"
    done = python(report + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


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
