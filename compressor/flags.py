"""The flags that make a recipe: one table, for every command that takes one.

A flag sets one option of one pass, or of the recipe itself. A new option of a pass is a new line here.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from compressor.recipe import Recipe

RECIPE = "recipe"


@dataclass(frozen=True)
class Flag:
    """One flag of the command line.

    owner: the pass whose option it sets, or "recipe". field: that option. kind: the type of its value.
    names: as typed; by default from the field's name. example: what to type where the option is missing.
    """

    owner: str
    field: str
    kind: Any
    help: str
    names: tuple[str, ...] = ()
    example: str = ""

    @property
    def parameter(self) -> str:
        """Its name among the arguments of a command."""
        return self.spelled[0].partition("/")[0].removeprefix("--").replace("-", "_")

    @property
    def spelled(self) -> tuple[str, ...]:
        """As typed: `--sparsity`, `-s`."""
        return self.names or (f"--{self.field.replace('_', '-')}",)


FLAGS = (
    Flag(
        "sparsify", "pattern", str,
        "2:4 keeps at most 2 non-zero of every 4 weights; 0.5 or 50% makes half of them zero.",
        names=("--sparsity", "-s"), example="--sparsity 2:4, or --sparsity 0.5",
    ),
    Flag("sparsify", "method", str, "How weights are chosen: magnitude, wanda, sparsegpt, admm or auto."),
    Flag("sparsify", "iterations", int, "Iterations of ADMM, in threes: 12 are quick, 48 are thorough."),
    Flag("sparsify", "targets", list[str], "Glob over weight names; repeatable. Default: all but stem, head and tied."),
    Flag("sparsify", "ignore", list[str], "Glob over weight names to leave dense; may be repeated."),
    Flag("sparsify", "scope", str, "Of a ratio: site (each alone), loss (more where it costs less), global or auto."),
    Flag("sparsify", "dense", float, "Of N:M: share of weights that may stay dense, where the pattern costs most."),
    Flag(
        "sparsify", "permute", bool, "Of N:M: reorder channels first, where that is free, so that less is removed.",
        names=("--permute/--no-permute",),
    ),
    Flag("sparsify", "refit", int, "Conjugate-gradient steps on the kept weights; 0 switches them off."),
    Flag("sparsify", "loss_refit", int, "Such steps by what errors do to the model's loss; 20 do."),
    Flag("sparsify", "bias", bool, "Refit each bias with its weights.", names=("--bias/--no-bias",)),
    Flag("sparsify", "match", str, "What outputs are fitted to: pruned, dense, or auto (held-out samples decide)."),
    Flag(
        "sparsify", "batchnorm", bool, "Move batch normalizations by what pruning changed, where that helps.",
        names=("--batchnorm/--no-batchnorm",),
    ),
    Flag("sparsify", "reconstruct", int, "Steps of Adam on the kept weights; 0 switches them off."),
    Flag("sparsify", "through", str, "What these go through: blocks, one after the other; the model; or auto."),
    Flag("sparsify", "damping", float, "Share of each channel's energy added to its Gram matrix; 0 chooses."),
    Flag("sparsify", "samples", int, "Calibration samples.", names=("--calibration-samples",)),
    Flag(
        "depth", "blocks", int, "Leave out so many residual blocks, the least important first.", names=("--depth",),
        example="--depth 1",
    ),
    Flag("depth", "samples", int, "Calibration samples for --depth.", names=("--depth-samples",)),
    Flag("depth", "targets", list[str], "Glob over blocks that may go.", names=("--depth-targets",)),
    Flag("depth", "ignore", list[str], "Glob over blocks that stay.", names=("--depth-ignore",)),
    Flag(
        "channels", "amount", str,
        "0.5 removes half of every kind of channel; mlp=0.5,heads=0.25 of these kinds (also conv, width).",
        names=("--channels",), example="--channels 0.5, or --channels mlp=0.5,heads=0.25",
    ),
    Flag(
        "channels", "target", str, "What --channels 0.5 halves: channels, parameters, flops or latency.",
        names=("--channels-target",),
    ),
    Flag(
        "channels", "importance", str, "How units are scored: magnitude, activation or error.",
        names=("--channels-importance",),
    ),
    Flag(
        "channels", "ranking", str, "Each group alone (layer), with its like (isomorphic), or all together (global).",
        names=("--channels-ranking",),
    ),
    Flag("channels", "round_to", int, "Keep channels in multiples of it."),
    Flag(
        "channels", "refit", bool, "Refit what reads the channels that stay.",
        names=("--channels-refit/--no-channels-refit",),
    ),
    Flag(
        "channels", "bias", bool, "Refit biases with it.", names=("--channels-bias/--no-channels-bias",),
    ),
    Flag("channels", "match", str, "As --match, for channels.", names=("--channels-match",)),
    Flag(
        "channels", "batchnorm", bool, "As --batchnorm, for channels.",
        names=("--channels-batchnorm/--no-channels-batchnorm",),
    ),
    Flag("channels", "reconstruct", int, "As --reconstruct, for channels.", names=("--channels-reconstruct",)),
    Flag("channels", "damping", float, "As --damping, for channels.", names=("--channels-damping",)),
    Flag("channels", "samples", int, "Calibration samples for channels.", names=("--channels-samples",)),
    Flag(
        "channels", "targets", list[str], "Glob over the weights that make channels.", names=("--channels-targets",)
    ),
    Flag(
        "channels", "ignore", list[str], "Glob over weights whose channels all stay.", names=("--channels-ignore",)
    ),
    Flag(
        "recover", "method", str, "Train what is left, zeros held: finetune (labels) or distill (the dense model).",
        names=("--recover",), example="--recover distill",
    ),
    Flag("recover", "steps", int, "How many training steps; else --recover-epochs.", names=("--recover-steps",)),
    Flag("recover", "epochs", float, "How often each training sample is seen.", names=("--recover-epochs",)),
    Flag("recover", "batch", int, "Samples per training step.", names=("--recover-batch",)),
    Flag("recover", "rate", float, "First step, as a share of each weight's mean size.", names=("--recover-rate",)),
    Flag("recover", "decay", float, "AdamW's weight decay.", names=("--recover-decay",)),
    Flag("recover", "clip", float, "Largest norm of a gradient; 0 for any.", names=("--recover-clip",)),
    Flag("recover", "warmup", float, "Share of the steps that warm up.", names=("--recover-warmup",)),
    Flag("recover", "training", int, "Training samples; all there are when 0.", names=("--recover-samples",)),
    Flag("recover", "held_out", float, "Share of them that is not learned from.", names=("--recover-held-out",)),
    Flag("recover", "checks", int, "How often those are asked.", names=("--recover-checks",)),
    Flag("recover", "patience", int, "Checks without progress that end it; 0 for none.", names=("--recover-patience",)),
    Flag("recover", "temperature", float, "Of distill: softens the classes.", names=("--recover-temperature",)),
    Flag("recover", "hidden", float, "Of distill: weight of block outputs.", names=("--recover-hidden",)),
    Flag("recover", "augment", list[str], "Of images: crop, flip; may be repeated.", names=("--recover-augment",)),
    Flag("recover", "precision", str, "float32, bfloat16 (mixed) or auto.", names=("--recover-precision",)),
    Flag(
        "quantize", "kind", str,
        "int8: 8-bit weights and activations; int8-dynamic: ranges at run time; int4: 4-bit weights.",
        names=("--quantize",), example="--quantize int8",
    ),
    Flag("quantize", "ranges", str, "Of int8: mse, percentile or minmax of what calibration data shows."),
    Flag("quantize", "smooth", float, "Of 8 bits: 0 to 1, how far loud channels move into the weights."),
    Flag("quantize", "outputs", str, "Of int8, which outputs are rounded too: auto, none or all.", ("--outputs",)),
    Flag("quantize", "sweeps", int, "Sweeps that round each weight so as to make up for others; 0: to the nearest."),
    Flag("quantize", "group", int, "Weights that share a scale, for int4."),
    Flag(
        "quantize", "embeddings", bool, "Embeddings in 8 bits; a weight tied to one is stored once for both.",
        names=("--embeddings/--no-embeddings",),
    ),
    Flag("quantize", "damping", float, "As --damping, for rounding.", names=("--quantize-damping",)),
    Flag("quantize", "samples", int, "Calibration samples for rounding.", names=("--quantize-samples",)),
    Flag("quantize", "targets", list[str], "Glob over the weights to quantize.", names=("--quantize-targets",)),
    Flag("quantize", "wide", list[str], "Of int4: glob over weights that get 8 bits.", names=("--quantize-wide",)),
    Flag("quantize", "ignore", list[str], "Glob over weights to keep in float.", names=("--quantize-ignore",)),
    Flag(
        RECIPE, "data", str,
        "Text, JSONL, CSV or parquet file, image folder, dataset id, or folder with train and test.",
    ),
    Flag(
        RECIPE, "backend", str, "Runtime to build for: onnxruntime (ort), tensorrt or tensorrt-rtx.",
        names=("--backend", "-b"),
    ),
    Flag(RECIPE, "dtype", str, "float32, float16 or bfloat16; auto, the default, is the runtime's first choice."),
    Flag(
        RECIPE, "shapes", list[str],
        "For engines: batch=1:8:32 is the least, usual and most of an axis; may be repeated.",
        names=("--shape",),
    ),
    Flag(
        RECIPE, "max_drop", str,
        "Fail when the artifact scores worse than dense by more: 1% (of perplexity) or points of top-1.",
    ),
    Flag(
        RECIPE, "back_off", bool, "Leave weights dense, or in more bits, that hurt most, until --max-drop holds.",
        names=("--back-off/--no-back-off",),
    ),
    Flag(RECIPE, "samples", int, "Held-out samples to score."),
    Flag(RECIPE, "window", int, "Tokens per text sample."),
    Flag(RECIPE, "seed", int, "Chooses samples and masked tokens; the same seed gives the same bytes."),
    Flag(RECIPE, "allow_partial", bool, "Accept that named sites were refused.", names=("--allow-partial",)),
    Flag(
        RECIPE, "trust_remote_code", bool, "Run code that comes with a model. Off unless asked.",
        names=("--trust-remote-code",),
    ),
)  # fmt: skip

MODEL = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Hub id, local folder, zoo name, package.module:function or FILE.py:function."
    ),
]
PLURALS = {"--method": ("--methods",)}
NONE, SEPARATOR = "none", ";"
RECIPE_FILE = Annotated[
    Path | None, typer.Option("--recipe", help="A recipe.yaml, or the folder of an artifact; flags beside it win.")
]
PRESET = Annotated[
    str | None, typer.Option(help="fast, default or best: one word for many options; compress plan prints them.")
]


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is a Recipe, as one that takes MODEL and every flag of the table instead."""
    return _with_flags(command, make_recipe, _annotation)


def takes_recipes(command: Callable[..., None]) -> Callable[..., None]:
    """As `takes_recipe`, for a command that takes a grid of them: a flag may hold several values, `0.5,0.7`, or with
    semicolons where one of them has commas of its own, `mlp=0.5,heads=0.25;0.5`."""
    return _with_flags(command, make_grid, _annotation_of_several)


def _with_flags(
    command: Callable[..., None], make: Callable[..., Any], annotation: Callable[[Flag], Any]
) -> Callable[..., None]:
    @functools.wraps(command)
    def with_flags(
        model: str | None = None, recipe: Path | None = None, preset: str | None = None, **given: Any
    ) -> None:
        flags = {flag: given.pop(flag.parameter) for flag in FLAGS}
        command(make(recipe, model, preset, flags), **given)

    own = list(inspect.signature(command).parameters.values())[1:]
    parameters = [
        _parameter("model", MODEL),
        *(_parameter(flag.parameter, annotation(flag)) for flag in FLAGS),
        _parameter("recipe", RECIPE_FILE),
        _parameter("preset", PRESET),
        *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own),
    ]
    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_flags


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _annotation(flag: Flag) -> Any:
    return Annotated[flag.kind | None, typer.Option(*flag.spelled, help=flag.help)]


def _takes_several(flag: Flag) -> bool:
    """Whether commas in its value divide it: not in a path, and not where the flag itself may be repeated."""
    return flag.kind in (str, int, float) and flag.field != "data"


def _annotation_of_several(flag: Flag) -> Any:
    if not _takes_several(flag):
        return _annotation(flag)
    names = (*flag.spelled, *PLURALS.get(flag.spelled[0], ()))
    return Annotated[str | None, typer.Option(*names, metavar="A,B,...", help=flag.help)]


@dataclass(frozen=True)
class Candidate:
    """One recipe of a grid. varied: flag -> value, of the flags that were given several."""

    varied: Mapping[str, str]
    recipe: "Recipe"


def make_grid(file: Path | None, model: str | None, preset: str | None, flags: Mapping[Flag, Any]) -> list[Candidate]:
    """Every combination of the values that flags were given, each as `make_recipe` reads it. Raises RecipeError."""
    axes = {flag: _several(flag, value) for flag, value in flags.items() if value and _takes_several(flag)}
    presets: list[str | None] = [*_parts(preset)] if preset else [None]
    made = []
    for word, *values in itertools.product(presets, *axes.values()):
        chosen: dict[Flag, str] = dict(zip(axes, map(str, values), strict=True))
        recipe = make_recipe(file, model, word, _without_none({**flags, **chosen}))
        varied = {flag.parameter: value for flag, value in chosen.items() if len(axes[flag]) > 1 or flag == FLAGS[0]}
        if word and len(presets) > 1:
            varied["preset"] = word
        made.append(Candidate(varied, recipe))
    return made


def _without_none(flags: Mapping[Flag, Any]) -> dict[Flag, Any]:
    """Where the flag that asks for a pass says `none`, nothing is said about that pass."""
    gone = {flag.owner for flag, value in flags.items() if flag.example and value == NONE}
    return {flag: None if flag.owner in gone else value for flag, value in flags.items()}


def grid(model: str, options: Mapping[str, Any]) -> list[Candidate]:
    """The same from Python: flags by their names, one value or a list of them. Raises RecipeError."""
    from compressor.registry import unknown

    options = dict(options)
    preset = options.pop("preset", None)
    known = {flag.parameter: flag for flag in FLAGS}
    for name in options:
        if name not in known:
            raise unknown("option of a sweep", name, known)
    flags = {flag: options.get(name) for name, flag in known.items()}
    joined = {flag: _joined(value) if _takes_several(flag) else value for flag, value in flags.items()}
    return make_grid(None, model, _joined(preset), joined)


def _joined(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return SEPARATOR.join(map(str, value)) if isinstance(value, Iterable) else str(value)


def _several(flag: Flag, text: str) -> list[str]:
    from compressor.errors import RecipeError

    values = _parts(text)
    if not all(values):
        raise RecipeError(f"{flag.spelled[0]} has an empty value", found=repr(text), hint="values with commas between")
    return list(dict.fromkeys(values))


def _parts(text: str) -> list[str]:
    """The values in a text. Shares by kind, mlp=0.5,heads=0.25, are one: then a semicolon divides."""
    return [part.strip() for part in text.split(SEPARATOR if SEPARATOR in text or "=" in text else ",")]


def make_recipe(file: Path | None, model: str | None, preset: str | None, flags: Mapping[Flag, Any]) -> "Recipe":
    """The recipe in the file, or a new one, with the preset and then what the flags say on top. Raises RecipeError."""
    from compressor.errors import RecipeError
    from compressor.recipe import Recipe

    made = Recipe.read(file) if file else Recipe()
    given = {flag: value for flag, value in flags.items() if value not in (None, [])}
    made = made.with_settings(_settings(given) | ({"model": model} if model is not None else {}))
    asked = _passes(given)
    for name, options in asked.items():
        _check_complete(made, name, options, asked)
    for name, options in _with_preset(preset, asked, [one.name for one in made.passes]).items():
        made = made.with_pass(name, options)
    if not made.model:
        raise RecipeError("no model was named", hint="compress export tiny-gpt2 --sparsity 2:4")
    return made


def _settings(given: Mapping[Flag, Any]) -> dict[str, Any]:
    """What the flags say about the recipe itself."""
    found = {flag.field: value for flag, value in given.items() if flag.owner == RECIPE}
    return found | ({"max_drop": found["max_drop"].strip().removesuffix("%")} if "max_drop" in found else {})


def _passes(given: Mapping[Flag, Any]) -> dict[str, dict[str, Any]]:
    """What the flags say about each pass."""
    found: dict[str, dict[str, Any]] = {}
    for flag, value in given.items():
        if flag.owner != RECIPE:
            found.setdefault(flag.owner, {})[flag.field] = value
    return found


def _with_preset(
    preset: str | None, asked: Mapping[str, Mapping[str, Any]], present: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """What the flags say about each pass, on top of what the preset says about those that are asked for or present."""
    from compressor.errors import RecipeError
    from compressor.recipe import PRESETS
    from compressor.registry import unknown

    if preset is None:
        return {name: dict(options) for name, options in asked.items()}
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    chosen = PRESETS[preset]
    found = {name: {**chosen.get(name, {}), **asked.get(name, {})} for name in dict.fromkeys((*present, *asked))}
    if not found:
        raise RecipeError(f"--preset {preset} chooses how, but nothing says what", hint="--sparsity 2:4")
    return found


def _check_complete(made: "Recipe", name: str, options: Mapping[str, Any], asked: Iterable[str]) -> None:
    """Raise RecipeError when flags say how, and none says what. asked: the passes that flags speak of."""
    from compressor.errors import RecipeError
    from compressor.registry import load
    from compressor.spec import required

    flags = {flag.field: flag for flag in FLAGS if flag.owner == name}
    missing = [field for field in required(load("passes", name)) if field not in options]
    if not missing or any(one.name == name for one in made.passes):
        return
    given = ", ".join(_typed(flags[field], value) for field, value in options.items())
    needed = flags[missing[0]]
    others = {*asked, *(one.name for one in made.passes)} - {name}
    hint = ", or ".join(filter(None, (_meant(options, others), needed.example)))
    raise RecipeError(f"{given} cannot stand without {needed.spelled[0]}", hint=hint or None)


def _meant(options: Mapping[str, Any], others: Collection[str]) -> str:
    """The flags of other passes for options of the same names: `--channels-samples (for --channels)`."""
    heads = {flag.owner: flag.spelled[0] for flag in FLAGS if flag.example}
    meant = [flag for flag in FLAGS if flag.owner in others and flag.field in options and not flag.example]
    return ", ".join(f"{_typed(flag, options[flag.field])} (for {heads[flag.owner]})" for flag in meant)


def _typed(flag: Flag, value: Any) -> str:
    """`--bias`, or `--no-bias` where it is switched off."""
    on, _, off = flag.spelled[0].partition("/")
    return off if off and value is False else on
