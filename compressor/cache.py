"""What was computed before, kept by content: small JSON files in one folder, the least recently used removed first.

A key is a hash of everything that the result depends on (`fingerprint.py`), so nothing in here ever goes stale: what
no longer fits is never asked for, and leaves when the folder grows beyond its limit.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import OutputError, RecipeError

FOLDER, LIMIT = "COMPRESS_CACHE", "COMPRESS_CACHE_LIMIT"
DEFAULT_LIMIT = "1GB"
SCRATCH = "unfinished"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Entry:
    """One kept result: its kind (`points`, `scores`), its file, bytes, and when it was last used (Unix seconds)."""

    kind: str
    path: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class Cache:
    """A folder of kept results. limit: bytes beyond which the least recently used go."""

    folder: Path
    limit: int

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was kept under a key; None when there is nothing, or nothing that can be read."""
        path = self._path(kind, key)
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            os.utime(path)
        except (OSError, ValueError):
            return None
        return body if isinstance(body, dict) else None

    def put(self, kind: str, key: str, body: dict[str, Any]) -> None:
        """Keep a result under a key, whole or not at all, then make room. Raises OutputError when it cannot."""
        path = self._path(kind, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, json.dumps(body, ensure_ascii=False))
        except OSError as error:
            raise self.unwritable(error) from None
        self.prune()

    def unwritable(self, error: OSError) -> OutputError:
        hint = f"{FOLDER}=FOLDER, or --no-cache"
        return OutputError(f"cannot write the cache {self.folder}", found=str(error.strerror), hint=hint)

    def entries(self) -> list[Entry]:
        """Everything that is kept, most recently used first."""
        found = [Entry(path.parent.name, path, *_size_and_time(path)) for path in self.folder.glob("*/*.json")]
        return sorted(found, key=lambda entry: -entry.used)

    def prune(self, limit: int | None = None) -> int:
        """Remove the least recently used entries beyond the limit; how many went."""
        room, gone = self.limit if limit is None else limit, 0
        for entry in self.entries():
            room -= entry.bytes
            if room < 0:
                entry.path.unlink(missing_ok=True)
                gone += 1
        return gone

    def clear(self) -> int:
        """Remove every entry, and what killed runs left; how many entries went."""
        shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)
        return self.prune(-1)

    @contextmanager
    def scratch(self, key: str) -> Iterator[Path]:
        """A folder for the work on one key: removed when that ends well, found again after a kill."""
        folder = self.folder / SCRATCH / key
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)

    def unfinished(self) -> int:
        """Bytes of the work that killed runs left."""
        return sum(path.stat().st_size for path in (self.folder / SCRATCH).rglob("*") if path.is_file())

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / f"{key}.json"


def open_cache() -> Cache:
    """The cache of this user: in COMPRESS_CACHE, else where the platform keeps caches.

    Raises RecipeError when its limit is no size, and OutputError when nothing can be written there.
    """
    from platformdirs import user_cache_path

    named = os.environ.get(FOLDER)
    folder = Path(named).expanduser() if named else user_cache_path("compressor", appauthor=False)
    cache = Cache(folder.absolute(), parse_size(os.environ.get(LIMIT) or DEFAULT_LIMIT))
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache.folder):
            return cache
    except OSError as error:
        raise cache.unwritable(error) from None


def cache_if_any() -> Cache | None:
    """The same; None where there is no room for one, which a single export does without unless a folder was named."""
    try:
        return open_cache()
    except OutputError:
        if os.environ.get(FOLDER):
            raise
        return None


def parse_size(text: str) -> int:
    """`500MB`, `1.5 GB` or `1000` as bytes, in powers of ten. Raises RecipeError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if found is None:
        raise RecipeError(f"a size cannot be {text!r}", hint="500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def _write_whole(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _size_and_time(path: Path) -> tuple[int, float]:
    try:
        status = path.stat()
    except OSError:  # another process has just removed it
        return 0, 0.0
    return status.st_size, status.st_mtime
