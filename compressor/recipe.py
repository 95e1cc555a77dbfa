"""A recipe: everything that changes the result, and nothing else.

    model | pass{...} | pass{...} | backend{...}

is its one-line form, as text and back; YAML holds the same with every default written out.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import RecipeError
from compressor.pipeline import Pass, format_pass, make_pass, parse_pass
from compressor.registry import names, unknown
from compressor.shapes import parse_shapes
from compressor.spec import build, format_spec, parse_specs

AUTO = "auto"
DTYPES = (AUTO, "float32", "float16", "bfloat16")


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are decimal: to PyYAML `2:4` is 124, in base 60."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]\d+)?$|[-+]?\.(inf|nan)$", re.IGNORECASE),
    list("-+.0123456789"),
)

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {"sparsify": {"method": "wanda", "refit": 5, "match": "pruned", "batchnorm": False, "samples": 64}},
    "default": {
        "sparsify": {
            "method": "auto", "iterations": 9, "scope": "site", "permute": False, "refit": 4, "loss_refit": 0,
            "bias": True, "match": "auto", "batchnorm": True, "reconstruct": 0, "through": "auto",
            "samples": 128,
        },
    },
    "best": {
        "sparsify": {
            "method": "admm", "iterations": 48, "scope": "auto", "permute": True, "refit": 5, "loss_refit": 20,
            "reconstruct": 112, "samples": 512,
        },
    },
}  # fmt: skip
"""One word for options of passes, by pass; options given beside it win. `default` is what stands without any;
named, it takes a recipe that was read back to that."""


@dataclass(frozen=True)
class Recipe:
    """What is done to which model, checked on which data, and built for which runtime.

    model: a hub id, a local folder, a zoo name, `module:function` or `file.py:function`.
    passes: the pipeline, in order.
    backend, dtype: what is built; `auto` is the backend's first choice.
    shapes: lengths of axes that vary, `SYMBOL=LEAST:USUAL:MOST`, where an engine is built for some; the rest is chosen.
    data: where calibration and evaluation samples come from; None takes the task's default.
    window: tokens per text sample, at most the model's context.
    samples: how many held-out samples are scored.
    max_drop: how much worse the artifact's score may be than the dense model's: percent of the perplexity, or
        percentage points of top-1; None accepts any.
    back_off: whether sites that hurt most are made dense again until the score is within max_drop.
    allow_partial: whether sites that were named but refused leave the verdict alone.
    seed: chooses sampled positions and masked tokens.
    """

    model: str = ""
    passes: tuple[Pass, ...] = ()
    backend: str = "onnxruntime"
    dtype: str = AUTO
    shapes: tuple[str, ...] = ()
    data: str | None = None
    window: int = 256
    samples: int = 128
    max_drop: float | None = None
    back_off: bool = False
    allow_partial: bool = False
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.backend == "ort":
            object.__setattr__(self, "backend", "onnxruntime")
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        parse_shapes(self.shapes)
        if self.window < 2 or self.samples < 1:
            raise RecipeError("window must be at least 2 and samples at least 1")
        if self.max_drop is not None and self.max_drop < 0:
            hint = "--max-drop 1% allows a score one percent worse"
            raise RecipeError(f"max_drop cannot be {self.max_drop}", hint=hint)

    def __str__(self) -> str:
        return " | ".join([format_spec("export", _Settings.of(self)), *map(format_pass, self.passes)])

    @staticmethod
    def parse(text: str) -> "Recipe":
        """The recipe that prints as this text. Raises RecipeError."""
        (name, settings), *passes = parse_specs(text)
        if name != "export":
            hint = "export{model=gpt2} | sparsify{...}"
            raise RecipeError(f"a recipe begins with export{{...}}, not {name!r}", hint=hint)
        return _assemble(settings, [make_pass(name, options) for name, options in passes])

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        passes = [{"pass": one.name, **_plain(one)} for one in self.passes]
        return yaml.safe_dump({**_plain(_Settings.of(self)), "passes": passes}, sort_keys=False)

    @staticmethod
    def from_yaml(text: str) -> "Recipe":
        """The recipe that a YAML text holds. Unknown keys name the nearest known one. Raises RecipeError."""
        try:
            loaded = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise RecipeError("the recipe is not YAML", found=" ".join(str(error).split())) from None
        if not isinstance(loaded, dict):
            raise RecipeError("a recipe is a mapping", found=type(loaded).__name__, hint="model: gpt2")
        passes = loaded.pop("passes", None) or []
        if not isinstance(passes, list):
            raise RecipeError(
                f"passes cannot be {passes!r}", hint="a list:\n  passes:\n  - pass: sparsify\n    pattern: 2:4"
            )
        return _assemble(loaded, [_pass_from(entry) for entry in passes])

    def with_settings(self, settings: Mapping[str, Any]) -> "Recipe":
        """The recipe with some of its own fields (not the passes) replaced by raw values. Raises RecipeError."""
        now = {f.name: getattr(self, f.name) for f in dataclasses.fields(_Settings)}
        return _assemble(now | dict(settings), list(self.passes))

    def with_pass(self, name: str, options: Mapping[str, Any]) -> "Recipe":
        """The recipe with these options of a pass, which is added in its place when there is none. Raises RecipeError.

        The place of a pass is that of the registry's table: what removes comes before what prunes, and so on.
        """
        place = {one: position for position, one in enumerate(names("passes"))}
        at = next((i for i, one in enumerate(self.passes) if one.name == name), None)
        if at is not None:
            made = [make_pass(name, _plain(self.passes[at]) | dict(options))]
            return dataclasses.replace(self, passes=(*self.passes[:at], *made, *self.passes[at + 1 :]))
        new = make_pass(name, dict(options))
        at = sum(place[one.name] < place[name] for one in self.passes)
        return dataclasses.replace(self, passes=(*self.passes[:at], new, *self.passes[at:]))

    @staticmethod
    def read(path: Path) -> "Recipe":
        """The recipe in a YAML file, or of an artifact's folder. Raises RecipeError."""
        path = path / "recipe.yaml" if path.is_dir() else path
        if not path.exists():
            beside = ", ".join(sorted(other.name for other in path.parent.glob("*.yaml")))
            hint = "a recipe.yaml, or the folder of an artifact"
            raise RecipeError(f"cannot find the recipe {path}", found=beside or None, hint=hint)
        try:
            return Recipe.from_yaml(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise RecipeError("the recipe is not YAML", found=f"{path.name}: {error}", hint="a recipe.yaml") from None


# Everything but the passes: what `export{...}` and the top level of the YAML hold.
_Settings: Any = dataclasses.make_dataclass(
    "_Settings",
    [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(Recipe) if f.name != "passes"],
    frozen=True,
    namespace={"of": classmethod(lambda cls, recipe: cls(*(getattr(recipe, f.name) for f in dataclasses.fields(cls))))},
)


def _assemble(settings: Mapping[str, Any], passes: list[Pass]) -> Recipe:
    checked = build(_Settings, settings, "recipe")
    return Recipe(passes=tuple(passes), **{f.name: getattr(checked, f.name) for f in dataclasses.fields(checked)})


def _pass_from(entry: Any) -> Pass:
    if isinstance(entry, str):
        return parse_pass(entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("pass"), str):
        raise RecipeError(f"a pass in a recipe cannot be {entry!r}", hint="- pass: sparsify\n    pattern: 2:4")
    return make_pass(entry["pass"], {key: value for key, value in entry.items() if key != "pass"})


def _plain(options: Any) -> dict[str, Any]:
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
