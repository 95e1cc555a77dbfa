"""A compiler that makes trained models smaller, and proves on the written file what it did.

    import compressor

    report = compressor.export("tiny-gpt2", "export | sparsify{pattern=2:4}")
    assert report

Names load on first use: `import compressor` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.commands.inspection import inspect
    from compressor.commands.planning import plan
    from compressor.commands.sweeping.run import sweep
    from compressor.commands.weighing import sensitivity
    from compressor.driver import export
    from compressor.errors import UserError
    from compressor.models.python import Model
    from compressor.proof.report import Report
    from compressor.recipe import Recipe

__all__ = ["Model", "Recipe", "Report", "UserError", "export", "inspect", "plan", "sensitivity", "sweep"]

_HOMES = {
    "Model": "compressor.models.python",
    "Recipe": "compressor.recipe",
    "Report": "compressor.proof.report",
    "UserError": "compressor.errors",
    "export": "compressor.driver",
    "inspect": "compressor.commands.inspection",
    "plan": "compressor.commands.planning",
    "sensitivity": "compressor.commands.weighing",
    "sweep": "compressor.commands.sweeping.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
