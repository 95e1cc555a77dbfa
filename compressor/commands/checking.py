"""`compress check`: whether a runtime's sparse kernels can take the weights of any ONNX file."""

from dataclasses import dataclass
from pathlib import Path

from compressor import onnx_file
from compressor.engine import EngineBackend, Verdict
from compressor.errors import RecipeError, SourceError
from compressor.proof.report import as_json
from compressor.registry import load


@dataclass(frozen=True)
class Check:
    """One verdict per contraction. True when one is eligible, and so is every one that has the zeros for it."""

    name: str
    backend: str
    verdicts: tuple[Verdict, ...]

    def __bool__(self) -> bool:
        return any(one.is_eligible for one in self.verdicts) and not self.broken

    @property
    def broken(self) -> tuple[Verdict, ...]:
        """What has the zeros and cannot use them."""
        return tuple(one for one in self.verdicts if one.is_meant and not one.is_eligible)

    def summary(self) -> str:
        eligible = sum(one.is_eligible for one in self.verdicts)
        text = f"{eligible} of {len(self.verdicts)} weights are eligible for sparse kernels"
        if self.broken:
            return f"{text}; {len(self.broken)} with enough zeros are not, the first {self.broken[0].site}"
        return text

    def to_json(self) -> str:
        return as_json(self, passed=bool(self))


def check(model: str | Path, backend: str = "tensorrt") -> Check:
    """Judge an ONNX file, or the one of an artifact's folder. Raises SourceError and BackendError."""
    path = Path(model)
    path = path / onnx_file.MODEL_FILE if path.is_dir() else path
    if not path.is_file():
        raise SourceError(f"cannot find {path}", hint="an .onnx file, or the folder of an artifact")
    runtime = load("backends", backend)()
    if not isinstance(runtime, EngineBackend):
        hint = "--backend tensorrt"
        raise RecipeError(f"there is nothing to check for {backend!r}: it has no sparse kernels", hint=hint)
    return Check(str(model), runtime.name, runtime.check(path))
