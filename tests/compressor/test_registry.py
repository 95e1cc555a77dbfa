import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from compressor import registry
from compressor.errors import RecipeError
from compressor.registry import load, names, unknown


@pytest.fixture(autouse=True)
def _fresh():
    names.cache_clear()
    yield
    names.cache_clear()


@pytest.fixture
def installed(monkeypatch):
    """Call it with `name="module:Class"` to pretend that packages which register these passes are installed."""

    def install(**values):
        def entry_points(group):
            return [EntryPoint(name, value, group) for name, value in values.items() if group == "compressor.passes"]

        monkeypatch.setattr(registry, "entry_points", entry_points)

    return install


@pytest.mark.parametrize("kind", ["passes", "backends", "sources"])
def test_every_built_in_name_loads(kind):
    for name, where in names(kind).items():
        assert load(kind, name).__name__ == where.split(":")[1]


def test_every_pass_and_backend_knows_the_name_it_is_registered_by():
    assert all(load(kind, name).name == name for kind in ("passes", "backends") for name in names(kind))


def test_ort_is_short_for_onnxruntime():
    assert load("backends", "ort") is load("backends", "onnxruntime")


def test_an_alias_of_a_backend_is_no_source():
    with pytest.raises(RecipeError, match="unknown source 'ort'"):
        load("sources", "ort")


def test_another_package_adds_its_pass(installed):
    installed(halve="decimal:Decimal")
    from decimal import Decimal

    assert load("passes", "halve") is Decimal
    assert "halve" not in names("backends")


def test_two_packages_with_one_name_are_an_error_that_lists_both(installed):
    installed(sparsify="other.package:Sparsify")
    with pytest.raises(RecipeError, match="two packages register the pass 'sparsify'") as caught:
        load("passes", "sparsify")
    assert caught.value.found == "compressor.passes.sparsify:Sparsify and other.package:Sparsify"
    assert caught.value.hint == "uninstall one of them"


def test_a_name_registered_twice_alike_is_no_collision(installed):
    installed(sparsify="compressor.passes.sparsify:Sparsify")
    assert load("passes", "sparsify").name == "sparsify"


@pytest.mark.parametrize(
    ("kind", "name", "what", "near"),
    [
        ("passes", "sparsfy", "pass", "sparsify"),
        ("backends", "onnx-runtime", "backend", "onnxruntime"),
        ("sources", "zo", "source", "zoo"),
        ("passes", "zzz", "pass", None),
    ],
)
def test_an_unknown_name_lists_the_known_ones_and_names_the_nearest(kind, name, what, near):
    with pytest.raises(RecipeError) as caught:
        load(kind, name)
    assert caught.value.what == f"unknown {what} {name!r}"
    assert caught.value.hint == near
    assert all(known in caught.value.found for known in names(kind))


def test_a_name_that_is_no_text_is_unknown_like_any_other():
    assert str(unknown("option", 3, ["steps"])) == "unknown option 3\n  found: known: steps"


def test_knowing_the_names_loads_nothing():
    code = "from compressor.registry import names; import sys; names('passes'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
