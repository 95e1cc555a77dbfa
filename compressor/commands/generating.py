"""`compress generate`: hear an artifact talk in ONNX Runtime, beside the dense model in torch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from compressor import onnx_file
from compressor.commands.sampling import blank, blank_of_graph, chooser, tokens
from compressor.driver import open_source
from compressor.errors import BackendError, RecipeError, SourceError, UserError
from compressor.graph import Feeds, Run
from compressor.progress import QUIET, Progress
from compressor.proof import finish
from compressor.proof.report import as_json, read_report
from compressor.recipe import Recipe
from compressor.registry import load

TASK = "text-generation"
UNFINISHED = "\ufffd"  # what half a character decodes to

Hear = Callable[[str, str], None]  # who talks, and the next piece of text


class Vocabulary(Protocol):
    """Text to token ids and back. ends: the tokens that end a text. longest: tokens that the model can attend to."""

    ends: frozenset[int]
    longest: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Said:
    """What one model has said. by: "dense" or "artifact"; runtime: where it ran; ended: whether it came to an end.

    first_ms: milliseconds to the first token. per_second: tokens after it, None when there was only one.
    """

    by: str
    runtime: str
    text: str
    tokens: tuple[int, ...]
    ended: bool
    first_ms: float
    per_second: float | None


@dataclass(frozen=True)
class Generated:
    """A prompt, and what followed it. same: how many tokens at the beginning both agree on, None for one alone."""

    name: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    temperature: float
    seed: int
    said: tuple[Said, ...]
    same: int | None

    def to_json(self) -> str:
        return as_json(self)


@dataclass(frozen=True)
class _Speaker:
    by: str
    runtime: str
    run: Run
    blank: Feeds


def generate(
    folder: str | Path,
    prompt: str,
    *,
    max_new: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    dense: bool = True,
    hear: Hear = lambda by, piece: None,
    progress: Progress = QUIET,
) -> Generated:
    """Continue a prompt with the dense model and the artifact, token after token, both by the same draws.

    hear: called with each piece of text as soon as it is there. Raises RecipeError when the artifact is no language
    model or the prompt does not fit, SourceError when the dense model is not here, BackendError when ONNX Runtime
    cannot run the artifact.
    """
    folder = Path(folder)
    recipe = _recipe(folder, max_new, temperature)
    vocabulary: Vocabulary = load("vocabularies", TASK)(folder)
    ids = vocabulary.encode(prompt)
    room = vocabulary.longest - len(ids)
    if not ids or room < 1:
        found = f"{len(ids)} tokens; the model attends to {vocabulary.longest}"
        raise RecipeError(f"the prompt is {'too long' if ids else 'empty'}", found=found, hint='"Once upon a time"')
    speakers = _speakers(folder, recipe, dense, progress)
    said = tuple(_say(one, vocabulary, ids, min(max_new, room), chooser(temperature, seed), hear) for one in speakers)
    return Generated(folder.name, prompt, tuple(ids), temperature, seed, said, _agreed(said) if dense else None)


def _speakers(folder: Path, recipe: Recipe, dense: bool, progress: Progress) -> list[_Speaker]:
    speakers = []
    if dense:
        progress.say("capture the dense model")
        speakers.append(_dense(folder, recipe))
    progress.say(f"open {folder} in ONNX Runtime")
    speakers.append(_artifact(folder))
    progress.say("generate")
    return speakers


def _recipe(folder: Path, max_new: int, temperature: float) -> Recipe:
    task = read_report(folder)["task"]
    if task != TASK:
        hint = "the artifact of a causal language model"
        raise RecipeError(f"{folder} does not generate text", found=task, hint=hint)
    if max_new < 1:
        raise RecipeError("there is nothing to generate", found=f"--max-new {max_new}", hint="--max-new 64")
    if temperature < 0:
        hint = "--temperature 0.8, or 0 for the likeliest tokens"
        raise RecipeError("a temperature is not negative", found=f"--temperature {temperature:g}", hint=hint)
    return Recipe.read(folder)


def _dense(folder: Path, recipe: Recipe) -> _Speaker:
    try:
        graph = open_source(None, recipe).lower()
    except UserError as error:
        found = f"{error.what} ({error.found})" if error.found else error.what
        what = f"the dense model of {folder} cannot be opened"
        raise SourceError(what, found=found, hint="--no-dense, to hear the artifact alone") from error
    return _Speaker("dense", "torch", graph.run, blank_of_graph(graph))


def _artifact(folder: Path) -> _Speaker:
    run, why = finish.stand_in(folder)
    if run is None:
        raise BackendError(f"ONNX Runtime cannot run {folder}", found=why)
    return _Speaker("artifact", finish.STAND_IN, run, blank(onnx_file.inputs(folder / onnx_file.MODEL_FILE)))


def _say(speaker: _Speaker, vocabulary: Vocabulary, prompt: list[int], most: int, choose: Callable, hear: Hear) -> Said:
    made: list[int] = []
    times, heard, ended = [time.perf_counter()], "", False
    before = len(vocabulary.decode(prompt))
    for token in tokens(speaker.run, speaker.blank, prompt, choose):
        times.append(time.perf_counter())
        ended = token in vocabulary.ends
        made += [] if ended else [token]
        text = vocabulary.decode([*prompt, *made])[before:]
        is_last = ended or len(times) > most
        if is_last or not text.endswith(UNFINISHED):
            hear(speaker.by, text[len(heard) :])
            heard = text
        if is_last:
            break
    rate = (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else None
    return Said(speaker.by, speaker.runtime, heard, tuple(made), ended, 1000 * (times[1] - times[0]), rate)


def _agreed(said: Sequence[Said]) -> int:
    first, second = (one.tokens for one in said)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
