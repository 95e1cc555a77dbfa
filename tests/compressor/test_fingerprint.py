"""Keys by content: the same content under another name has the same key, any other content has another one."""

import dataclasses

import pytest
import torch
from torch import nn

import compressor
from compressor import fingerprint
from compressor.driver import open_source
from compressor.fingerprint import digest, model_digest, point_key
from compressor.recipe import Recipe

VERSIONS = {"torch": "2"}
RECIPE = Recipe.parse("export{model=a} | sparsify{pattern=2:4,method=magnitude}")


def net(seed: int = 0, bias: bool = True, **more) -> compressor.Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(8, 8, bias=bias), nn.ReLU(), nn.Linear(8, 4))
    return compressor.Model(module, torch.zeros(2, 8), **more)


def key_of(model: compressor.Model) -> str | None:
    source = open_source(model, Recipe())
    return model_digest(source, source.lower())


def test_parts_are_told_apart_by_value_type_and_place():
    parts = ([1, 2], [12], ["1", "2"], [b"12"], [torch.tensor([1, 2])], [torch.tensor([1.0, 2.0])],
             [torch.tensor([[1], [2]])], [[1, 2]], [None], [])  # fmt: skip
    assert len({digest(*part) for part in parts}) == len(parts)
    assert digest(torch.arange(6).reshape(2, 3).T) == digest(torch.arange(6).reshape(2, 3).T.contiguous())


def test_the_same_model_has_the_same_key():
    assert key_of(net()) == key_of(net())


@pytest.mark.parametrize(
    "other",
    [net(1), net(bias=False), net(calibration=[torch.ones(2, 8)]), net(training=[(torch.ones(2, 8), torch.ones(2))])],
    ids=["weights", "structure", "calibration", "training"],
)
def test_other_weights_structure_or_data_make_another_key(other):
    assert key_of(other) != key_of(net())


def test_one_changed_weight_is_enough():
    model = net()
    before = key_of(model)
    with torch.no_grad():
        model.module[2].weight[3, 7] += 1e-6
    assert key_of(model) != before


def test_a_source_that_cannot_tell_its_data_has_no_key():
    source = open_source(net(), Recipe())

    class Silent:
        workloads = source.workloads

    assert model_digest(Silent(), source.lower()) is None


def test_the_name_of_model_and_data_is_not_in_the_key():
    renamed = dataclasses.replace(RECIPE, model="b", data="elsewhere")
    assert point_key("m", renamed, VERSIONS) == point_key("m", RECIPE, VERSIONS)


@pytest.mark.parametrize(
    ("model", "recipe", "versions"),
    [
        ("n", RECIPE, VERSIONS),
        ("m", dataclasses.replace(RECIPE, seed=1), VERSIONS),
        ("m", RECIPE.with_pass("sparsify", {"pattern": "1:4"}), VERSIONS),
        ("m", RECIPE, {"torch": "3"}),
    ],
    ids=["model", "seed", "pattern", "version"],
)
def test_model_recipe_and_versions_are_in_the_key(model, recipe, versions):
    assert point_key(model, recipe, versions) != point_key("m", RECIPE, VERSIONS)


def test_our_own_code_is_in_the_key(monkeypatch):
    before = point_key("m", RECIPE, VERSIONS)
    monkeypatch.setattr(fingerprint, "own_code", lambda: "edited")
    assert point_key("m", RECIPE, VERSIONS) != before


def test_data_is_told_by_its_content(tmp_path):
    text = "the quick brown fox jumps over the lazy dog. " * 900
    keys = []
    for name, content in (("a.txt", text), ("b.txt", text), ("c.txt", text.replace("fox", "cat", 1))):
        (tmp_path / name).write_text(content)
        keys.append(open_source("tiny-gpt2", Recipe(data=str(tmp_path / name))).digest())
    assert keys[0] == keys[1] != keys[2]
