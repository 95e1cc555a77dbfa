"""The command line: flags to a recipe, errors to exit codes, results to tables or JSON.

Exit codes: 0 every promise met; 1 built, but a promise was not met; 2 the user can fix it; 70 our bug; 130 interrupted;
143 terminated. Nothing heavy is imported before a command runs.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from json import dumps as json_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor import debugging
from compressor.artifact import SCHEMA
from compressor.errors import UserError
from compressor.flags import takes_recipe, takes_recipes

if TYPE_CHECKING:
    from compressor.commands.building import Built
    from compressor.flags import Candidate
    from compressor.proof.report import Report
    from compressor.recipe import Recipe

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


# *** flags that several commands share; those that make a recipe are in flags.py ***


class Action(StrEnum):
    """What `compress cache` does."""

    list = "list"
    prune = "prune"
    clear = "clear"


RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a model. Off unless asked.")
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="An artifact's folder.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute everything anew, and keep nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="One row per weight.")]
Steps = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also one row per weight, settings, and each step with its seconds.")
]


@app.command()
@takes_recipe
def export(
    recipe: "Recipe",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The artifact's folder. Default: NAME-BACKEND.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact of the same name.")] = False,
    dump_graph: Annotated[Path | None, typer.Option(help="Write the graph after each pass into this folder.")] = None,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Steps = False,
) -> None:
    """Compress a model for a runtime, and check the written file."""
    from compressor import cache, driver, progress
    from compressor.cli import terminal

    report = driver.export(
        None,
        recipe,
        output=output,
        overwrite=overwrite,
        progress=progress.choose(quiet, verbose),
        dump_graph=dump_graph,
        cache=None if no_cache else cache.cache_if_any(),
    )
    _print(report, json, quiet, lambda console: terminal.show_report(report, console, verbose))
    if json or quiet:
        _say_unmet(report)
    raise typer.Exit(OK if report else NOT_MET)


@app.command()
@takes_recipe
def plan(recipe: "Recipe", json: Json = False, quiet: Quiet = False, verbose: Steps = False) -> None:
    """Say what export would do, take and bring; touch no weight."""
    from compressor import plan as planning
    from compressor import progress
    from compressor.cli import terminal

    found = planning(None, recipe, progress=progress.choose(quiet, verbose))
    _print(found, json, quiet, lambda console: terminal.show_plan(found, console, verbose))


@app.command()
@takes_recipe
def sensitivity(
    recipe: "Recipe",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also the whole curve of each weight, and seconds of each step.")
    ] = False,
) -> None:
    """Say what zeros cost in each weight, by gradients; touch none."""
    from compressor import progress
    from compressor.cli import terminal
    from compressor.commands import weighing

    found = weighing.sensitivity(None, recipe, progress=progress.choose(quiet, verbose))
    _print(found, json, quiet, lambda console: terminal.show_weighing(found, console, verbose))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An artifact's folder, an ONNX file, or any model.")],
    channels: Annotated[bool, typer.Option("--channels", help="And which channels, heads and blocks can go.")] = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code: whether it can be read.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show weights, zeros and patterns, as a runtime reads them."""
    from compressor import inspect as look
    from compressor.cli import terminal

    found = look(model, channels=channels, trust_remote_code=trust_remote_code)
    _print(found, json, quiet, lambda console: terminal.show_inspection(found, console, verbose))


@app.command()
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, or an artifact's folder.")],
    backend: Annotated[str, typer.Option("--backend", "-b", help="Runtime: tensorrt or tensorrt-rtx.")] = "tensorrt",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say of each weight whether sparse kernels can take it."""
    from compressor.cli import terminal
    from compressor.commands import checking

    found = checking.check(model, backend)
    _print(found, json, quiet, lambda console: terminal.show_check(found, console, verbose))
    if not found and (json or quiet):
        _complain(f"compress: {found.summary()}", NOT_MET)
    raise typer.Exit(OK if found else NOT_MET)


@app.command()
def build(
    folder: Folder,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also the kernel of each layer, and each step with its seconds.")
    ] = False,
) -> None:
    """Build an artifact's engine on the host that has the GPU."""
    from compressor import progress
    from compressor.cli import terminal
    from compressor.commands import building

    built = building.build(folder, progress=progress.choose(quiet, verbose))
    _print(built, json, quiet, lambda console: terminal.show_built(built, console, verbose))
    if json or quiet:
        _say_unmet(built)
    raise typer.Exit(OK if built else NOT_MET)


@app.command()
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Artifacts, ONNX files, or any models.")],
    threads: Annotated[int, typer.Option(help="Threads of each.")] = 1,
    seconds: Annotated[float, typer.Option(help="About how long each workload is timed.")] = 4.0,
    batch: Annotated[list[int] | None, typer.Option(help="Samples at once; may be repeated. Default: 1 and 8.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Of language models: tokens before the first.")] = 64,
    new_tokens: Annotated[int, typer.Option(help="Of language models: tokens to generate.")] = 16,
    shape: Annotated[list[str] | None, typer.Option(help="Length of an axis that varies: height=224.")] = None,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also settings, versions, and each step with its seconds.")
    ] = False,
) -> None:
    """Time models in turn: latency, memory, tokens per second."""
    from compressor import progress
    from compressor.cli import terminal
    from compressor.commands import building
    from compressor.commands.benching import run, table

    if len(models) == 1 and building.has_engine(models[0]):
        built = building.bench(models[0], progress=progress.choose(quiet, verbose))
        _print(built, json, quiet, lambda console: terminal.show_bench(built, console, verbose))
        raise typer.Exit(NOT_MET if built.missing else OK)
    settings = run.Settings(
        threads, seconds, tuple(batch or (1, 8)), prompt_tokens, new_tokens, run.sizes_of(shape or [])
    )
    shown = progress.choose(quiet, verbose)
    found = run.bench(models, settings, trust_remote_code=trust_remote_code, progress=shown)
    _print(found, json, quiet, lambda console: table.show_bench(found, console, verbose))
    raise typer.Exit(NOT_MET if found.missing else OK)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="An artifact's folder, an ONNX file, or any model.")],
    after: Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")],
    trust_remote_code: RemoteCode = False,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code: 0 the same, 1 different.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One row per weight, and the graphs.")] = False,
) -> None:
    """Compare two models, files or artifacts, graphs and weights."""
    from compressor.cli.diff_view import show_diff
    from compressor.commands import diffing

    found = diffing.diff(before, after, trust_remote_code=trust_remote_code)
    _print(found, json, quiet, lambda console: show_diff(found, console, verbose))
    raise typer.Exit(OK if found else NOT_MET)


@app.command()
def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on with.")],
    max_new: Annotated[int, typer.Option("--max-new", "-n", help="Tokens at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; above, one is drawn.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn, the same for both models.")] = 0,
    dense: Annotated[bool, typer.Option("--dense/--no-dense", help="The dense model beside it, in torch.")] = True,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what the artifact adds to the prompt.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also settings, token ids, and each step with its seconds.")
    ] = False,
) -> None:
    """Hear a compressed language model beside the dense one."""
    from compressor import progress
    from compressor.cli.talk import Murmur, Talk
    from compressor.commands import generating

    talk, dense = (Murmur(_console()), False) if quiet else (Talk(_console(), prompt, verbose), dense)
    hear = (lambda by, piece: None) if json else talk.hear
    with _reader_may_leave():
        said = generating.generate(
            folder,
            prompt,
            max_new=max_new,
            temperature=temperature,
            seed=seed,
            dense=dense,
            hear=hear,
            progress=progress.choose(quiet, verbose),
        )
    _print(said, json, False, lambda console: talk.end(said))


@app.command(name="report")
def report_(
    folder: Folder,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page. Default: report.html in it.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what stands on the page.")] = False,
) -> None:
    """Make the page report.html of an artifact again."""
    from compressor import page
    from compressor.cli import terminal

    made = page.write_page(folder, output)
    _print(made, json, quiet, lambda console: terminal.show_page(made, console, verbose))


@app.command()
@takes_recipes
def sweep(
    candidates: "list[Candidate]",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The sweep's folder, written anew. Default: NAME-sweep.")
    ] = None,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Also recipe and times of each point, and each step with its seconds."),
    ] = False,
) -> None:
    """Compare many recipes in one table and one page of plots.

    --sparsity 0.5,0.7,2:4 --methods wanda,sparsegpt is six of them: any flag with several values, commas between, makes
    one axis of a grid, and `none` leaves a pass out.
    """
    from compressor import cache, progress
    from compressor.commands.sweeping import run, table

    kept = None if no_cache else cache.open_cache()
    found = run.run_sweep(candidates, output=output, progress=progress.choose(quiet, verbose), cache=kept)
    _print(found, json, quiet, lambda console: table.show_sweep(found, console, verbose))
    if not found and (json or quiet):
        _complain("compress: not met: a point failed or broke a promise; sweep.json says which", NOT_MET)
    raise typer.Exit(OK if found else NOT_MET)


@app.command(name="cache")
def cache_(
    action: Annotated[Action, typer.Argument(help="What to do: list, prune or clear.")] = Action.list,
    limit: Annotated[str | None, typer.Option(help="prune: what may stay, 500MB; else COMPRESS_CACHE_LIMIT.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also one row per entry.")] = False,
) -> None:
    """Show, prune or clear what sweeps and exports keep."""
    from compressor.cli import cache_view, terminal

    found = cache_view.act(action.value, limit, verbose)
    _print(found, json, quiet, lambda console: terminal.show_cache(found, console, verbose))


@app.command(name="list")
def list_(
    json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also every option of each pass.")] = False,
) -> None:
    """List models, passes and backends, and what is missing here."""
    from compressor.cli import listing, terminal

    found = listing.everything()
    _print(found, json, False, lambda console: terminal.show_names(found, console, verbose))


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
    """Run a command; a user's mistake is one paragraph, a bug of ours keeps its traceback.

    With --json an error is JSON on standard output besides: `{"schema": ..., "error": {"code": 2, "what": ...}}`.
    """
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        # Neither an Exit nor Ctrl-C comes out of typer: it returns their codes.
        code = app(prog_name="compress", standalone_mode=False) or OK
    except KeyboardInterrupt:
        code = INTERRUPTED
    except UserError as error:
        if debugging.level() >= debugging.TRACEBACK:
            _print_traceback(error)
        code = _fail(f"compress: {error}", USER, error.what, error.found, error.hint)
    except Exception as error:
        code = _click_or_bug(error)
    if code == INTERRUPTED:
        _fail("compress: interrupted; nothing was written", code, "interrupted; nothing was written")
    sys.exit(code)


def _complain(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _fail(text: str, code: int, what: str, found: str | None = None, hint: str | None = None) -> int:
    """The text to people; the error as JSON to programs that have asked for it."""
    if "--json" in sys.argv[1:]:
        error = {"code": code, "what": what, "found": found, "hint": hint}
        print(json_of({"schema": SCHEMA, "error": error}, indent=2, ensure_ascii=False))
    return _complain(text, code) if text else code


def _click_or_bug(error: Exception) -> int:
    """A wrong flag is the user's; anything else is ours, with its traceback."""
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        error.show()  # type: ignore[attr-defined]
        return _fail("", USER, error.format_message(), None, "compress --help")
    _print_traceback(error)
    text = "this is a bug of ours; please send the command and the lines above"
    return _fail(f"compress: {text}", BUG, f"{type(error).__name__}: {error}", None, text)


def _print_traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error)
