"""The cache: what is kept comes back, the folder stays within its limit, and what is broken counts as missing."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor import cache as caching
from compressor.cache import Cache, cache_if_any, open_cache, parse_size
from compressor.cli import cache_view
from compressor.errors import OutputError, RecipeError


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", limit=1000)


def aged(cache: Cache, kind: str, key: str, seconds: float) -> None:
    """As if last used so many seconds after 1970."""
    os.utime(cache._path(kind, key), (seconds, seconds))


def test_what_is_kept_comes_back_and_nothing_else_does(cache):
    assert cache.get("points", "a") is None
    cache.put("points", "a", {"value": 0.1, "name": "2:4 ä"})
    assert cache.get("points", "a") == {"value": 0.1, "name": "2:4 ä"}
    assert cache.get("points", "b") is None
    assert cache.get("scores", "a") is None


@given(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False) | st.text(max_size=5) | st.none(), max_size=4))
def test_every_json_value_survives(tmp_path_factory, body):
    cache = Cache(tmp_path_factory.getbasetemp() / "cache", limit=10**6)
    cache.put("k", "x", body)
    assert cache.get("k", "x") == body


@pytest.mark.parametrize("content", ["", '{"value": 0', "[1]", "\x00"])
def test_what_cannot_be_read_counts_as_missing(cache, content):
    cache.put("points", "a", {"value": 1})
    cache._path("points", "a").write_text(content)
    assert cache.get("points", "a") is None


def test_the_least_recently_used_go_first_when_room_is_needed(cache):
    for at, key in enumerate("abcd"):
        cache.put("points", key, {"text": "x" * 200})
        aged(cache, "points", key, at)
    cache.get("points", "a")  # used just now
    cache.put("points", "e", {"text": "x" * 200})
    left = {entry.path.stem for entry in cache.entries()}
    assert left == {"a", "c", "d", "e"}
    assert sum(entry.bytes for entry in cache.entries()) <= cache.limit


def test_nothing_half_written_is_left_where_writing_fails(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.Path, "replace", full)
    with pytest.raises(OutputError, match="cannot write the cache") as caught:
        cache.put("points", "a", {"value": 1})
    assert caught.value.found == "No space left on device"
    assert not [path for path in cache.folder.rglob("*") if path.is_file()]


def test_scratch_is_found_again_after_a_failure_and_gone_after_success(cache):
    def killed():
        with cache.scratch("a") as folder:
            (folder / "half").write_text("done")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    with cache.scratch("a") as folder:
        assert (folder / "half").read_text() == "done"
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500 * 10**6), ("1.5 gb", 15 * 10**8), ("10", 10), ("2k", 2000), ("1TB", 10**12)]
)
def test_a_size_is_read_in_powers_of_ten(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 PB", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="a size cannot be") as caught:
        parse_size(text)
    assert caught.value.hint == "500MB"


def test_folder_and_limit_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("COMPRESS_CACHE_LIMIT", "2MB")
    assert open_cache() == Cache(tmp_path / "mine", 2 * 10**6)
    monkeypatch.delenv("COMPRESS_CACHE")
    monkeypatch.delenv("COMPRESS_CACHE_LIMIT")
    assert open_cache().folder.name == "compressor"
    assert open_cache().limit == 10**9


def test_where_nothing_can_be_written_a_named_folder_is_refused_and_the_usual_one_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "file" / "cache"))
    for opened in (open_cache, cache_if_any):
        with pytest.raises(OutputError, match="cannot write the cache") as caught:
            opened()
        assert caught.value.hint == "COMPRESS_CACHE=FOLDER, or --no-cache"
    monkeypatch.delenv("COMPRESS_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "file" / "cache")
    assert cache_if_any() is None
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "cache")
    assert cache_if_any() == open_cache()


def test_the_view_counts_prunes_and_clears(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    cache = open_cache()
    for key in "abc":
        cache.put("points", key, {"x": "x" * 90})  # 99 bytes each
    cache.put("scores", "a", {})
    shown = cache_view.act("list")
    assert [(kind.name, kind.entries, kind.bytes) for kind in shown.kinds] == [("points", 3, 297), ("scores", 1, 2)]
    assert (shown.bytes, shown.removed) == (299, None)
    assert cache_view.act("prune", "199").removed == 2
    assert cache_view.act("clear").kinds == ()
    with pytest.raises(RecipeError, match="--limit says nothing to list"):
        cache_view.act("list", "200")
