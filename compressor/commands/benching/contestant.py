"""What takes part in a benchmark: an artifact, an ONNX file, or a model as it comes, each as a file to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor import onnx_file
from compressor.driver import open_source
from compressor.engine import EngineBackend
from compressor.errors import SourceError
from compressor.graph import Run
from compressor.recipe import Recipe
from compressor.registry import load

RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Contestant:
    """One file that ONNX Runtime runs. missing: what else it is made for, which is not timed here."""

    name: str
    what: str
    file: Path
    missing: str = ""

    def open(self, threads: int) -> Run:
        return load("backends", RUNTIME)().open(self.file, threads)

    @property
    def bytes(self) -> int:
        """Of the file, and of the weights beside it where they are called as we call them."""
        beside = self.file.with_name(f"{self.file.name}.data")
        return self.file.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def find(name: str, trust_remote_code: bool, scratch: Path) -> Contestant:
    """The contestant of that name; a model is built dense into `scratch`. Raises SourceError."""
    path = Path(name)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise SourceError(f"cannot find {path}", hint="an .onnx file, an artifact's folder, or a model's name")
        return Contestant(name, "ONNX file", path)
    if (path / onnx_file.MODEL_FILE).is_file():
        return _artifact(name, path)
    source = open_source(None, Recipe(model=name, trust_remote_code=trust_remote_code))
    scratch.mkdir(parents=True)
    load("backends", RUNTIME)().build(source.lower(), scratch)
    return Contestant(name, "dense model", scratch / onnx_file.MODEL_FILE)


def _artifact(name: str, folder: Path) -> Contestant:
    file = folder / onnx_file.MODEL_FILE
    if not (folder / "recipe.yaml").exists():
        return Contestant(name, "folder", file)
    recipe = Recipe.read(folder)
    backend: Any = load("backends", recipe.backend)()
    engine = isinstance(backend, EngineBackend)
    missing = f"the engine of {name}: alone it is timed, compress bench {name}" if engine else ""
    return Contestant(name, f"artifact, {recipe.dtype}", file, missing)
