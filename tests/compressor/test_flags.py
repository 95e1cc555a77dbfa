"""Flags to a recipe."""

import dataclasses

import pytest

from compressor.errors import RecipeError
from compressor.flags import FLAGS, RECIPE, grid, make_grid, make_recipe
from compressor.recipe import PRESETS, Recipe
from compressor.registry import load, names
from compressor.spec import required


def made(preset=None, file=None, **given):
    flags = {flag: given.pop(flag.parameter, None) for flag in FLAGS}
    assert not given, given
    return make_recipe(file, "net", preset, flags)


@pytest.mark.parametrize("name", names("passes"))
def test_every_option_of_a_pass_is_a_flag(name):
    flags = {flag.field for flag in FLAGS if flag.owner == name}
    assert flags == {field.name for field in dataclasses.fields(load("passes", name))}


def test_every_setting_of_the_recipe_is_a_flag():
    flags = {flag.field for flag in FLAGS if flag.owner == RECIPE}
    assert flags == {field.name for field in dataclasses.fields(Recipe)} - {"model", "passes"}


def test_no_two_flags_are_typed_alike():
    spelled = [name for flag in FLAGS for part in flag.spelled for name in part.split("/")]
    assert len(spelled) == len(set(spelled))
    assert len({flag.parameter for flag in FLAGS}) == len(FLAGS)


@pytest.mark.parametrize("name", names("passes"))
def test_what_a_pass_cannot_do_without_has_an_example_to_type(name):
    flags = {flag.field: flag for flag in FLAGS if flag.owner == name}
    assert all(flags[field].example for field in required(load("passes", name)))


def test_flags_set_options_of_their_pass_and_settings_of_the_recipe():
    recipe = made(sparsity="2:4", refit=0, calibration_samples=7, samples=9, max_drop="1.5%", allow_partial=True)
    assert str(recipe) == (
        "export{model=net,samples=9,max_drop=1.5,allow_partial=true} | sparsify{pattern=2:4,refit=0,samples=7}"
    )


def test_recovery_comes_after_what_it_recovers_from():
    recipe = made(recover="distill", recover_steps=5, recover_augment=["flip"], sparsity="2:4")
    assert [one.name for one in recipe.passes] == ["sparsify", "recover"]
    assert str(recipe).endswith(" | recover{method=distill,steps=5,augment=[flip]}")
    with pytest.raises(RecipeError, match="--recover-steps cannot stand without --recover") as caught:
        made(recover_steps=5)
    assert caught.value.hint == "--recover distill"


def test_without_a_flag_there_is_no_pass():
    assert made().passes == ()


def test_a_preset_is_a_word_for_options_and_options_beside_it_win():
    assert made("fast", sparsity="2:4") == Recipe("net").with_pass(
        "sparsify", {"pattern": "2:4"} | PRESETS["fast"]["sparsify"]
    )
    assert made("fast", sparsity="2:4", refit=0).passes[0].refit == 0
    assert made("fast", sparsity="2:4", refit=0).passes[0].method == "wanda"


def test_a_preset_changes_the_passes_of_a_recipe_that_is_read(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(made(sparsity="1:4").to_yaml(), encoding="utf-8")
    assert made("fast", file).passes == made("fast", sparsity="1:4").passes


def test_a_preset_nobody_knows_names_the_nearest():
    with pytest.raises(RecipeError, match="unknown preset 'bets'") as caught:
        made("bets", sparsity="2:4")
    assert caught.value.hint == "best"


def test_how_without_what_says_what_to_type():
    with pytest.raises(RecipeError, match="--method, --refit cannot stand without --sparsity") as caught:
        made(method="wanda", refit=3)
    assert caught.value.hint == "--sparsity 2:4, or --sparsity 0.5"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"channels": "0.5", "calibration_samples": 8}, "--channels-samples (for --channels), or --sparsity 2:4"),
        ({"channels": "0.5", "bias": False}, "--no-channels-bias (for --channels), or --sparsity 2:4"),
        ({"quantize": "int8", "damping": 0.1}, "--quantize-damping (for --quantize), or --sparsity 2:4"),
        ({"depth": 1, "targets": ["a"]}, "--depth-targets (for --depth), or --sparsity 2:4"),
        ({"sparsity": "2:4", "channels_refit": True}, "--refit (for --sparsity), or --channels 0.5"),
        ({"recover": "distill", "method": "wanda"}, "--sparsity 2:4"),
    ],
)
def test_a_flag_of_another_pass_names_the_one_that_was_meant(given, hint):
    with pytest.raises(RecipeError, match="cannot stand without") as caught:
        made(**given)
    assert caught.value.hint.startswith(hint)


# *** several values ***


def grid_of(**given):
    flags = {flag: given.pop(flag.parameter, None) for flag in FLAGS}
    assert not given, given
    return make_grid(None, "net", None, flags)


def test_several_values_make_every_combination_in_the_order_typed():
    made = grid_of(sparsity="0.5, 2:4", method="wanda,magnitude")
    assert [str(one.recipe) for one in made] == [
        "export{model=net} | sparsify{pattern=0.5,method=wanda}",
        "export{model=net} | sparsify{pattern=0.5,method=magnitude}",
        "export{model=net} | sparsify{pattern=2:4,method=wanda}",
        "export{model=net} | sparsify{pattern=2:4,method=magnitude}",
    ]
    assert made[1].varied == {"sparsity": "0.5", "method": "magnitude"}


def test_shares_by_kind_are_one_value_and_semicolons_divide():
    [one] = grid_of(channels="mlp=0.5,heads=0.25")
    assert one.recipe.passes[0].amount == "mlp=0.5,heads=0.25"
    made = grid_of(channels="mlp=0.5,heads=0.25; 0.5", method=None)
    assert [candidate.varied["channels"] for candidate in made] == ["mlp=0.5,heads=0.25", "0.5"]
    from_python = grid("net", {"channels": ["mlp=0.5,heads=0.25", 0.5]})
    assert [candidate.recipe for candidate in from_python] == [candidate.recipe for candidate in made]


def test_one_value_is_no_axis_but_sparsity_is_always_shown():
    [one] = grid_of(sparsity="0.5", method="wanda", refit="3", seed="7")
    assert one.varied == {"sparsity": "0.5"}
    assert (one.recipe.passes[0].refit, one.recipe.seed) == (3, 7)


def test_none_leaves_a_pass_out_with_all_its_options():
    made = grid_of(sparsity="0.5", recover="none,distill", recover_steps="5")
    assert [[one.name for one in candidate.recipe.passes] for candidate in made] == [
        ["sparsify"],
        ["sparsify", "recover"],
    ]
    assert [candidate.varied["recover"] for candidate in made] == ["none", "distill"]


def test_a_path_and_what_may_be_repeated_are_not_divided():
    [one] = grid_of(sparsity="0.5", data="a,b.txt", targets=["x,y"])
    assert (one.recipe.data, one.recipe.passes[0].targets) == ("a,b.txt", ("x,y",))


def test_an_empty_value_is_refused():
    with pytest.raises(RecipeError, match="--sparsity has an empty value"):
        grid_of(sparsity="0.5,,0.7")


def test_presets_can_vary_too():
    made = make_grid(
        None, "net", "fast,best", {flag: "2:4" if flag.parameter == "sparsity" else None for flag in FLAGS}
    )
    assert [one.varied["preset"] for one in made] == ["fast", "best"]
    assert made[0].recipe.passes[0].method == "wanda"


def test_the_grid_from_python_is_that_of_the_command_line():
    assert grid("net", {"sparsity": ["2:4", 0.5], "refit": 0}) == grid_of(sparsity="2:4,0.5", refit="0")
