"""What `compress sensitivity` measures, and that it touches nothing."""

import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

import compressor
from compressor.cli.terminal import show_weighing
from compressor.commands.weighing import sensitivity
from compressor.errors import RecipeError


@pytest.fixture(scope="module")
def model() -> compressor.Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(64, 8)
    return compressor.Model(net, x[:2], calibration=[x])


def test_without_a_pattern_half_of_each_weight_is_asked_and_no_weight_is_touched(model):
    before = {name: x.clone() for name, x in model.module.state_dict().items()}
    found = sensitivity(model)
    assert found.recipe == "sparsify{pattern=0.5}"
    assert [one.site for one in found.sites] == ["2.weight"] or len(found.sites) > 1
    assert all(one.pattern == "0.5" and one.loss == pytest.approx(one.losses[2], rel=0.2) for one in found.sites)
    assert all(torch.equal(x, before[name]) for name, x in model.module.state_dict().items())


def test_the_loss_is_said_in_its_unit_and_a_recipe_says_what_each_site_gives(model):
    found = sensitivity(model, 'export | sparsify{pattern=0.5,scope=loss,targets=["*t"]}')
    assert found.unit == "nats of KL divergence"
    given = {one.site: float(one.pattern) for one in found.sites}
    sizes = {one.site: one.size for one in found.sites}
    assert sum(given[name] * sizes[name] for name in given) == pytest.approx(0.5 * sum(sizes.values()))
    assert len(set(given.values())) > 1


def test_channels_that_a_recipe_puts_into_another_order_are_weighed_in_it_and_the_model_keeps_its_own(model):
    before = {name: x.clone() for name, x in model.module.state_dict().items()}
    text = 'export | sparsify{pattern=2:4,targets=["*t"],permute=%s}'
    found = [sensitivity(model, text % permute).sites for permute in ("false", "true")]
    plain, ordered = ({one.site: one.loss for one in sites} for sites in found)
    assert list(plain) == list(ordered)
    assert sum(ordered.values()) < 0.9 * sum(plain.values())
    assert ordered["0.weight"] == pytest.approx(plain["0.weight"], rel=0.05)  # the model's inputs keep their order
    assert all(torch.equal(x, before[name]) for name, x in model.module.state_dict().items())


def test_what_is_not_pruning_is_refused(model):
    with pytest.raises(RecipeError, match="quantize does not tell what its changes cost") as caught:
        sensitivity(model, "export | quantize{kind=int8-dynamic}")
    assert caught.value.hint == "compress sensitivity MODEL --sparsity 2:4"


def test_it_is_shown_in_80_columns_and_as_json(model):
    found = sensitivity(model, 'export | sparsify{pattern=2:4,dense=0.3,targets=["*t"]}')
    text = io.StringIO()
    show_weighing(found, Console(file=text, width=80, highlight=False, markup=False))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[-2:] == ["dense", "0.0e+00"] for line in lines)
    read = json.loads(found.to_json())
    assert [one["pattern"] for one in read["sites"]].count("dense") == 1
    assert len(read["sites"][0]["losses"]) == len(read["sites"][0]["shares"])
