"""What `compress cache` does, and what it says of the cache then."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from compressor.cache import SCRATCH, Cache, Entry, open_cache, parse_size
from compressor.errors import RecipeError
from compressor.proof.report import as_json


@dataclass(frozen=True)
class Kind:
    """Entries of one kind. used: when one of them last was, `2026-01-31 12:00`."""

    name: str
    entries: int
    bytes: int
    used: str


@dataclass(frozen=True)
class Kept:
    """One entry. what: the recipe of a point, the score of a dense model."""

    what: str
    kind: str
    bytes: int
    used: str


@dataclass(frozen=True)
class CacheView:
    """The folder, the kinds of entries in it, bytes, and how many entries were just removed, None when not asked.

    entries: each of them, the last used first, where asked for.
    """

    folder: str
    limit: int
    bytes: int
    kinds: tuple[Kind, ...]
    removed: int | None = None
    entries: tuple[Kept, ...] = ()

    def to_json(self) -> str:
        return as_json(self)


def act(action: str, limit: str | None = None, verbose: bool = False) -> CacheView:
    """Do `list`, `prune` or `clear` on this user's cache. Raises RecipeError for a limit that is no size."""
    cache = open_cache()
    if limit is not None and action != "prune":
        raise RecipeError(f"--limit says nothing to {action}", hint="compress cache prune --limit 500MB")
    removed = None
    if action == "prune":
        removed = cache.prune(parse_size(limit) if limit else None)
    if action == "clear":
        removed = cache.clear()
    return view(cache, removed, verbose)


def view(cache: Cache, removed: int | None = None, verbose: bool = False) -> CacheView:
    """The cache as it stands."""
    groups: dict[str, list[Entry]] = {}
    for entry in cache.entries():
        groups.setdefault(entry.kind, []).append(entry)
    kinds = [
        Kind(name, len(group), sum(entry.bytes for entry in group), _time(group[0].used))
        for name, group in sorted(groups.items())
    ]
    left = cache.unfinished()
    if left:
        kinds.append(Kind(SCRATCH, 1, left, ""))
    held = sum(kind.bytes for kind in kinds)
    entries = tuple(_kept(one) for one in cache.entries()) if verbose else ()
    return CacheView(str(cache.folder), cache.limit, held, tuple(kinds), removed, entries)


def _kept(entry: Entry) -> Kept:
    return Kept(_what(entry.path), entry.kind, entry.bytes, _time(entry.used))


def _what(path: Path) -> str:
    """From what is in it; its key where that does not tell."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{path.stem} (cannot be read)"
    if "recipe" in body:
        return str(body["recipe"])
    return f"{body['metric']} {body['value']:.2f} of {body['n']}" if "metric" in body else path.stem


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
