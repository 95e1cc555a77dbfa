import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import RecipeError
from compressor.pipeline import format_pass, parse_pass
from compressor.recipe import DTYPES, PRESETS, Recipe
from compressor.registry import load, names
from compressor.spec import required

Sparsify = load("passes", "sparsify")


texts = st.text(min_size=1)
sparsify = st.builds(
    Sparsify,
    pattern=st.sampled_from(["2:4", "1:4", "4:8", "0.5", "0.25"]),
    method=st.sampled_from(["magnitude", "wanda", "sparsegpt"]),
    refit=st.integers(0, 99),
    damping=st.floats(0, 1),
    samples=st.integers(1, 999),
    targets=st.lists(texts).map(tuple),
    ignore=st.lists(texts).map(tuple),
)
recipes = st.builds(
    Recipe,
    model=texts,
    passes=st.lists(sparsify, max_size=3).map(tuple),
    backend=st.sampled_from(["onnxruntime", "ort", "tensorrt"]),
    dtype=st.sampled_from(DTYPES),
    shapes=st.lists(st.sampled_from(["batch=8", "sequence=1:128:512"])).map(tuple),
    data=st.none() | st.text(),
    window=st.integers(2, 4096),
    samples=st.integers(1, 4096),
    max_drop=st.none() | st.floats(0, 100),
    allow_partial=st.booleans(),
    seed=st.integers(),
    trust_remote_code=st.booleans(),
)


@given(recipes)
def test_every_recipe_parses_its_own_print(recipe):
    assert Recipe.parse(str(recipe)) == recipe


@given(recipes)
def test_every_recipe_reads_its_own_yaml(recipe):
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("name", sorted(names("passes")))
def test_every_registered_pass_parses_its_own_print(name):
    values = {"pattern": "2:4", "method": "distill", "kind": "int4", "amount": "0.5", "blocks": 1}
    one = load("passes", name)(**{field: values[field] for field in required(load("passes", name))})
    assert parse_pass(format_pass(one)) == one


def test_prints_as_one_line():
    recipe = Recipe("gpt2", (Sparsify(pattern="2:4", method="wanda"),), max_drop=1.0)
    assert str(recipe) == "export{model=gpt2,max_drop=1.0} | sparsify{pattern=2:4,method=wanda}"


def test_yaml_writes_every_default_out():
    written = yaml.safe_load(Recipe("gpt2", (Sparsify(pattern="2:4"),)).to_yaml())
    assert written["dtype"] == "auto"
    assert written["passes"][0]["pass"] == "sparsify"
    assert written["passes"][0]["targets"] == ["*"]


def test_a_short_recipe_written_by_hand_is_enough():
    text = "model: gpt2\npasses:\n- sparsify{pattern=2:4}\n- pass: sparsify\n  pattern: 0.5\n"
    assert Recipe.from_yaml(text) == Recipe("gpt2", (Sparsify(pattern="2:4"), Sparsify(pattern="0.5")))


def test_a_pattern_needs_no_quotes_in_yaml():
    # To YAML 1.1, 2:4 is the number 124, in base 60.
    text = "model: gpt2\npasses:\n- pass: sparsify\n  pattern: 2:4\n"
    assert Recipe.from_yaml(text).passes == (Sparsify(pattern="2:4"),)


def test_ort_is_short_for_onnxruntime():
    assert Recipe("gpt2", backend="ort") == Recipe("gpt2", backend="onnxruntime")


@pytest.mark.parametrize(
    ("text", "what", "near"),
    [
        ("model: a\nwindw: 3", "unknown option of recipe 'windw'", "window"),
        ("model: a\npasses:\n- pass: sparsfy", "unknown pass 'sparsfy'", "sparsify"),
        ("model: a\npasses:\n- {pass: sparsify, patern: x}", "unknown option of sparsify 'patern'", "pattern"),
        ("model: a\ndtype: float23", "unknown dtype 'float23'", "float32"),
    ],
)
def test_an_unknown_key_names_the_nearest(text, what, near):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    assert caught.value.what == what
    assert caught.value.hint == near


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("- a", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("a: [", "the recipe is not YAML"),
        ("model: a\npasses: [3]", "a pass in a recipe cannot be 3"),
        ("model: a\npasses: 3", "passes cannot be 3"),
        ("model: a\npasses: sparsify", "passes cannot be 'sparsify'"),
        ("model: a\npasses: ['sparsify{pattern=0.5} | sparsify{pattern=0.5}']", "is more than one pass"),
        ("model: a\npasses: [{pass: [1]}]", "a pass in a recipe cannot be"),
        ("model: a\n3: 4", "unknown option of recipe 3"),
        ("model: a\nwindow: 1", "window must be at least 2"),
        ("model: a\nsamples: 0", "samples at least 1"),
        ("model: a\nsamples: 1.5", "recipe.samples cannot be 1.5"),
        ("model: a\nmax_drop: -1", "max_drop cannot be -1.0"),
        ("model: a\nmax_drop: .nan", "recipe.max_drop cannot be nan"),
    ],
)
def test_yaml_that_is_no_recipe_is_refused_in_words(text, what):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml(text)
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("sparsify{pattern=2:4}", "a recipe begins with export{...}, not 'sparsify'"),
        ("export{model=a} | export{model=b}", "unknown pass 'export'"),
    ],
)
def test_one_line_that_is_no_recipe_is_refused_in_words(text, what):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert caught.value.what == what


def test_a_pipeline_is_not_one_pass():
    with pytest.raises(RecipeError, match="more than one pass"):
        parse_pass("sparsify{pattern=2:4} | sparsify{pattern=0.5}")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_made_of_options_of_passes(preset):
    recipe = Recipe().with_pass("sparsify", {"pattern": "2:4"})
    for name, options in PRESETS[preset].items():
        recipe = recipe.with_pass(name, options)
    assert [one.name for one in recipe.passes] == ["sparsify"]


def test_the_preset_default_is_what_stands_without_any():
    recipe = Recipe().with_pass("sparsify", {"pattern": "2:4"})
    for name, options in PRESETS["default"].items():
        assert recipe.with_pass(name, options) == recipe


def test_the_preset_default_takes_back_what_the_others_say():
    recipe = Recipe().with_pass("sparsify", {"pattern": "2:4"})
    for preset in PRESETS.values():
        changed = recipe.with_pass("sparsify", preset["sparsify"])
        assert changed.with_pass("sparsify", PRESETS["default"]["sparsify"]) == recipe


def test_an_option_of_a_pass_changes_the_one_that_is_there_and_leaves_its_others():
    recipe = Recipe().with_pass("sparsify", {"pattern": "2:4", "refit": 3})
    assert recipe.with_pass("sparsify", {"pattern": "1:4"}).passes == (Sparsify(pattern="1:4", refit=3),)


def test_reads_a_file_or_the_folder_of_an_artifact(tmp_path):
    recipe = Recipe("modèle", (Sparsify(pattern="2:4"),))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.read(tmp_path) == Recipe.read(tmp_path / "recipe.yaml") == recipe


def test_a_missing_recipe_says_what_would_be_one(tmp_path):
    with pytest.raises(RecipeError, match="cannot find the recipe") as caught:
        Recipe.read(tmp_path)
    assert (caught.value.found, caught.value.hint) == (None, "a recipe.yaml, or the folder of an artifact")
    (tmp_path / "0.5-none.yaml").write_text("")
    with pytest.raises(RecipeError, match="cannot find the recipe") as caught:
        Recipe.read(tmp_path / "0.5.yaml")
    assert caught.value.found == "0.5-none.yaml"


def test_a_file_that_is_no_text_is_refused_in_words(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x81\x00")
    with pytest.raises(RecipeError, match="the recipe is not YAML"):
        Recipe.read(tmp_path / "model.bin")
