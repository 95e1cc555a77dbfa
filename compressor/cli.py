"""The command line: flags to a recipe, errors to exit codes, results to tables or JSON.

Exit codes: 0 every promise met; 1 built, but a promise was not met; 2 the user can fix it; 70 our bug; 130 interrupted;
143 terminated. Nothing heavy is imported before a command runs.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.errors import UserError

if TYPE_CHECKING:
    from compressor.building import Built
    from compressor.recipe import Recipe
    from compressor.report import Report

SPARSIFY_FLAGS = ("method", "scope", "refit", "bias", "match", "reconstruct", "damping", "targets", "ignore")
OK, NOT_MET, USER, BUG, INTERRUPTED, TERMINATED = 0, 1, 2, 70, 130, 143

app = typer.Typer(
    name="compress",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make a trained model smaller, and prove on the written file what was done.",
    epilog="Start with: compress export tiny-gpt2 --sparsity 2:4",
)


def _show_version(is_asked: bool) -> None:
    from importlib.metadata import version

    if is_asked:
        typer.echo(f"compress {version('compressor')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # Without a docstring: the application's own help stands.
    pass


# *** flags that several commands share ***

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Hub id, local folder, zoo name, package.module:function or FILE.py:function."
    ),
]
Sparsity = Annotated[
    str | None,
    typer.Option(
        "--sparsity", "-s", help="2:4 keeps at most 2 non-zero of every 4 weights; 0.5 or 50% makes half of them zero."
    ),
]
Method = Annotated[str | None, typer.Option(help="How weights are chosen: magnitude, wanda, sparsegpt or admm.")]
Scope = Annotated[
    str | None, typer.Option(help="Of a ratio: each site alone, or all together (global; magnitude only).")
]
Refit = Annotated[int | None, typer.Option(help="Conjugate-gradient steps on the kept weights; 0 switches them off.")]
Bias = Annotated[bool | None, typer.Option("--bias/--no-bias", help="Refit each bias with its weights.")]
Match = Annotated[
    str | None, typer.Option(help="What outputs are fitted to: pruned, dense, or auto (held-out samples decide).")
]
Reconstruct = Annotated[
    int | None, typer.Option(help="Steps of Adam on each block's kept weights; 0 switches them off.")
]
Damping = Annotated[
    float | None, typer.Option(help="Share of each channel's energy added to its Gram matrix; 0 chooses.")
]
Calibration = Annotated[int | None, typer.Option("--calibration-samples", help="Calibration samples.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(help="Glob over weight names; may be repeated. Default: all but stem, head and tied."),
]
Ignore = Annotated[list[str] | None, typer.Option(help="Glob over weight names to leave dense; may be repeated.")]
Data = Annotated[
    str | None,
    typer.Option(help="Text, JSONL, CSV or parquet file, image folder, dataset id, or folder with train and test."),
]
BackendName = Annotated[
    str | None,
    typer.Option("--backend", "-b", help="Runtime to build for: onnxruntime (ort), tensorrt or tensorrt-rtx."),
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, float16 or bfloat16; auto, the default, is the runtime's first choice.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", help="For engines: batch=1:8:32 is the least, usual and most of an axis; may be repeated."),
]
Window = Annotated[int | None, typer.Option(help="Tokens per text sample.")]
Samples = Annotated[int | None, typer.Option(help="Held-out samples to score.")]
MaxDrop = Annotated[
    str | None,
    typer.Option(help="Fail when the artifact scores worse than dense by more: 1% (of perplexity) or points of top-1."),
]
Preset = Annotated[
    str | None, typer.Option(help="fast, default or best: one word for many options; compress plan prints them.")
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="A recipe.yaml, or the folder of an artifact; flags beside it win.")
]
Seed = Annotated[
    int | None, typer.Option(help="Chooses samples and masked tokens; the same seed gives the same bytes.")
]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Accept that named sites were refused.")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model. Off unless asked.")
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="An artifact's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="One row per weight.")]


@app.command()
def export(
    model: ModelName = None,
    sparsity: Sparsity = None,
    method: Method = None,
    targets: Targets = None,
    ignore: Ignore = None,
    data: Data = None,
    backend: BackendName = None,
    dtype: Dtype = None,
    shape: Shapes = None,
    max_drop: MaxDrop = None,
    recipe: RecipeFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The artifact's folder. Default: NAME-BACKEND.")
    ] = None,
    preset: Preset = None,
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact of the same name.")] = False,
    scope: Scope = None,
    refit: Refit = None,
    bias: Bias = None,
    match: Match = None,
    reconstruct: Reconstruct = None,
    damping: Damping = None,
    calibration_samples: Calibration = None,
    samples: Samples = None,
    window: Window = None,
    allow_partial: AllowPartial = False,
    trust_remote_code: RemoteCode = False,
    dump_graph: Annotated[Path | None, typer.Option(help="Write the graph after each pass into this folder.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compress a model for a runtime, and check the written file."""
    from compressor import driver, progress, terminal

    made = _recipe(recipe, model, _sparsify(sparsity, preset, locals()), _settings(locals()))
    report = driver.export(
        None, made, output=output, overwrite=overwrite, progress=progress.choose(quiet), dump_graph=dump_graph
    )
    _print(report, json, quiet, lambda console: terminal.show_report(report, console, verbose))
    if json or quiet:
        _say_unmet(report)
    raise typer.Exit(OK if report else NOT_MET)


@app.command()
def plan(
    model: ModelName = None,
    sparsity: Sparsity = None,
    method: Method = None,
    targets: Targets = None,
    ignore: Ignore = None,
    data: Data = None,
    backend: BackendName = None,
    dtype: Dtype = None,
    shape: Shapes = None,
    max_drop: MaxDrop = None,
    recipe: RecipeFile = None,
    preset: Preset = None,
    seed: Seed = None,
    scope: Scope = None,
    refit: Refit = None,
    bias: Bias = None,
    match: Match = None,
    reconstruct: Reconstruct = None,
    damping: Damping = None,
    calibration_samples: Calibration = None,
    samples: Samples = None,
    window: Window = None,
    allow_partial: AllowPartial = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what export would do, take and bring; touch no weight."""
    from compressor import plan as planning
    from compressor import progress, terminal

    made = _recipe(recipe, model, _sparsify(sparsity, preset, locals()), _settings(locals()))
    found = planning(None, made, progress=progress.choose(quiet))
    _print(found, json, quiet, lambda console: terminal.show_plan(found, console, verbose))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An artifact's folder, an ONNX file, or any model.")],
    trust_remote_code: RemoteCode = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show weights, zeros, and patterns on the axis a runtime reads."""
    from compressor import inspect as look
    from compressor import terminal

    found = look(model, trust_remote_code=trust_remote_code)
    _print(found, json, False, lambda console: terminal.show_inspection(found, console, verbose))


@app.command()
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, or an artifact's folder.")],
    backend: Annotated[str, typer.Option("--backend", "-b", help="Runtime: tensorrt or tensorrt-rtx.")] = "tensorrt",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say of each weight whether sparse kernels can take it."""
    from compressor import checking, terminal

    found = checking.check(model, backend)
    _print(found, json, quiet, lambda console: terminal.show_check(found, console, verbose))
    if not found and (json or quiet):
        _complain(f"compress: {found.summary()}", NOT_MET)
    raise typer.Exit(OK if found else NOT_MET)


@app.command()
def build(folder: Folder, json: Json = False, quiet: Quiet = False) -> None:
    """Build an artifact's engine on the host that has the GPU."""
    from compressor import building, progress, terminal

    built = building.build(folder, progress=progress.choose(quiet))
    _print(built, json, quiet, lambda console: terminal.show_built(built, console))
    if json or quiet:
        _say_unmet(built)
    raise typer.Exit(OK if built else NOT_MET)


@app.command()
def bench(folder: Folder, json: Json = False) -> None:
    """Time an artifact in the runtimes that are here."""
    from compressor import building, terminal

    found = building.bench(folder)
    _print(found, json, False, lambda console: terminal.show_bench(found, console))
    raise typer.Exit(NOT_MET if found.missing else OK)


@app.command(name="list")
def list_(json: Json = False) -> None:
    """List models, passes and backends, and what is missing here."""
    import json as encoder

    from compressor import listing, terminal

    groups = listing.everything()
    with _reader_may_leave():
        if json:
            typer.echo(encoder.dumps(groups, indent=2, ensure_ascii=False))
        else:
            terminal.show_names(groups, _console())


# *** flags to a recipe ***


def _sparsify(sparsity: str | None, preset: str | None, flags: dict[str, Any]) -> dict[str, Any]:
    """What the flags say about the pass `sparsify`."""
    from compressor.recipe import PRESETS
    from compressor.registry import unknown

    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    given = {name: flags[name] for name in SPARSIFY_FLAGS}
    given |= {"pattern": sparsity, "samples": flags["calibration_samples"]}
    chosen = PRESETS[preset] if preset else {}
    return chosen | {name: value for name, value in given.items() if value not in (None, [])}


def _settings(flags: dict[str, Any]) -> dict[str, Any]:
    """What the flags say about everything but the passes."""
    given = {name: flags[name] for name in ("data", "backend", "dtype", "seed", "samples", "window")}
    given["shapes"] = flags["shape"] or None
    switches = {name: True for name in ("allow_partial", "trust_remote_code") if flags[name]}
    drop = {} if flags["max_drop"] is None else {"max_drop": flags["max_drop"].strip().removesuffix("%")}
    return {name: value for name, value in given.items() if value is not None} | switches | drop


def _recipe(file: Path | None, model: str | None, sparsify: dict[str, Any], settings: dict[str, Any]) -> "Recipe":
    """The recipe in the file, or a new one, with what the flags say on top."""
    from compressor.errors import RecipeError
    from compressor.recipe import Recipe

    base = Recipe.read(file) if file else Recipe()
    if model is not None:
        settings["model"] = model
    made = base.with_settings(settings).with_sparsify(sparsify)
    if not made.model:
        raise RecipeError("no model was named", hint="compress export tiny-gpt2 --sparsity 2:4")
    return made


# *** results ***


def _print(result: Any, json: bool, quiet: bool, show: Callable[[Any], None]) -> None:
    with _reader_may_leave():
        if json:
            typer.echo(result.to_json(), nl=False)
        elif not quiet:
            show(_console())


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """`compress ... | head` keeps its own exit code, where rich exits with 1, which is a promise not met."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_unmet(report: "Report | Built") -> None:
    """On standard error, for those who asked for no table."""
    for promise in report.promises:
        if not promise.met:
            _complain(f"compress: not met: {promise.name}: {promise.detail}", NOT_MET)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def main() -> None:
    """Run a command; a user's mistake is one paragraph, a bug of ours keeps its traceback."""
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        # Neither an Exit nor Ctrl-C comes out of typer: it returns their codes.
        code = app(prog_name="compress", standalone_mode=False) or OK
    except KeyboardInterrupt:
        code = INTERRUPTED
    except UserError as error:
        if os.environ.get("COMPRESS_DEBUG", "") not in ("", "0"):
            _print_traceback(error)
        code = _complain(f"compress: {error}", USER)
    except Exception as error:
        code = _click_or_bug(error)
    sys.exit(_complain("compress: interrupted; nothing was written", code) if code == INTERRUPTED else code)


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _click_or_bug(error: Exception) -> int:
    """A wrong flag is the user's; anything else is ours, with its traceback."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        error.show()  # type: ignore[attr-defined]
        return USER
    _print_traceback(error)
    return _complain("compress: this is a bug of ours; please send the command and the lines above", BUG)


def _print_traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error)


if __name__ == "__main__":
    main()
