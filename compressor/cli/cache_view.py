"""What `compress cache` does, and what it says of the cache then."""

import time
from dataclasses import dataclass

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
class CacheView:
    """The folder, the kinds of entries in it, bytes, and how many entries were just removed, None when not asked."""

    folder: str
    limit: int
    bytes: int
    kinds: tuple[Kind, ...]
    removed: int | None = None

    def to_json(self) -> str:
        return as_json(self)


def act(action: str, limit: str | None = None) -> CacheView:
    """Do `list`, `prune` or `clear` on this user's cache. Raises RecipeError for a limit that is no size."""
    cache = open_cache()
    if limit is not None and action != "prune":
        raise RecipeError(f"--limit says nothing to {action}", hint="compress cache prune --limit 500MB")
    removed = None
    if action == "prune":
        removed = cache.prune(parse_size(limit) if limit else None)
    if action == "clear":
        removed = cache.clear()
    return view(cache, removed)


def view(cache: Cache, removed: int | None = None) -> CacheView:
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
    return CacheView(str(cache.folder), cache.limit, sum(kind.bytes for kind in kinds), tuple(kinds), removed)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
