"""A model that has lost channels or layers is loaded again by its own library, with the same logits, if it can be."""

from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.channels.blocks import drop
from compressor.channels.cut import cut
from compressor.channels.groups import find_groups
from compressor.driver import open_source
from compressor.graph import Graph
from compressor.models.causal_lm import CausalLM
from compressor.models.masked_lm import MaskedLM
from compressor.models.pretrained import PROGRAM
from compressor.models.resized import is_resized, resized
from compressor.quantization import Point, Rounding
from compressor.recipe import Recipe
from compressor.rounded import round_activations
from compressor.source import Options
from tests.models.architectures import CAUSAL, MASKED, build


def smaller(name: str, *kinds: str, first_only: bool = False) -> tuple[CausalLM, Graph]:
    """A source, and its graph without the second half of the units of these kinds."""
    source = CausalLM("tiny", "tiny", build(*CAUSAL[name]), Options())
    graph = source.lower()
    groups = [group for group in find_groups(graph) if group.kind in kinds and not group.frozen]
    groups = groups[:1] if first_only else groups
    cut(graph, {group.name: torch.arange(group.units) < group.units // 2 for group in groups})
    return source, graph


@pytest.mark.parametrize(("name", "kinds"), [("gpt2", ("mlp",)), ("llama", ("mlp", "heads"))])
def test_from_pretrained_gives_the_logits_of_the_smaller_graph(name: str, kinds: tuple[str, ...], tmp_path: Path):
    loaded_gives_the_logits_of(*smaller(name, *kinds), tmp_path)


def test_saving_it_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, graph = smaller("gpt2", "mlp")
    capsys.readouterr()
    source._save_smaller(tmp_path, graph)
    assert capsys.readouterr() == ("", "")


def loaded_gives_the_logits_of(source: Any, graph: Graph, folder: Path) -> Any:
    """What from_pretrained makes of the folder that was written."""
    assert is_resized(source.model, graph)
    assert "from_pretrained loads" in source._save_smaller(folder, graph)
    loaded = type(source.model).from_pretrained(folder).eval()
    with torch.no_grad():
        found = source.forward(loaded, graph.example)[0]
    torch.testing.assert_close(found, graph.run(graph.example)["logits"])
    assert sum(x.numel() for x in loaded.parameters()) < sum(x.numel() for x in source.model.parameters())
    return loaded


def of_three_layers(name: str) -> CausalLM:
    config, options, model = CAUSAL[name]
    layers = {"n_layer" if "n_layer" in options else "num_hidden_layers": 3}
    return CausalLM("tiny", "tiny", build(config, options | layers, model), Options())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("gpt2", "transformer.h.1"),
        pytest.param("qwen3", "model.layers.0", marks=pytest.mark.slow),  # a kind for each layer
        pytest.param("gpt-neox", "gpt_neox.layers.1", marks=pytest.mark.slow),
    ],
)
def test_layers_that_are_left_are_numbered_anew(name: str, block: str, tmp_path: Path):
    source = of_three_layers(name)
    graph = source.lower()
    drop(graph, [block])
    loaded = loaded_gives_the_logits_of(source, graph, tmp_path)
    assert loaded.config.num_hidden_layers == 2
    assert source.model.config.num_hidden_layers == 3


@pytest.mark.slow
def test_layers_and_channels_that_are_gone_are_both_told(tmp_path: Path):
    source = of_three_layers("gpt2")
    graph = source.lower()
    drop(graph, ["transformer.h.0"])
    cut(graph, {one.name: torch.arange(one.units) < 24 for one in find_groups(graph) if one.kind == "mlp"})
    config = loaded_gives_the_logits_of(source, graph, tmp_path).config
    assert (config.num_hidden_layers, config.n_inner) == (2, 24)


def test_a_resnet_has_a_depth_for_each_stage(tmp_path: Path):
    source = open_source("tiny-resnet", Recipe(model="tiny-resnet"))
    graph = source.lower()
    drop(graph, ["resnet.encoder.stages.1.layers.1.layer"])
    depths = list(source.model.config.depths)  # type: ignore[attr-defined]
    loaded = loaded_gives_the_logits_of(source, graph, tmp_path)
    assert loaded.config.depths == [depths[0], depths[1] - 1, depths[2]]


@pytest.mark.slow
def test_layers_whose_normalizations_stay_are_kept_as_a_program(tmp_path: Path):
    source = MaskedLM("tiny", "tiny", build(*MASKED["bert"]), Options())
    graph = source.lower()
    drop(graph, ["bert.encoder.layer.0"])
    assert source._save_smaller(tmp_path, graph).startswith("from_pretrained cannot load the smaller model: ")
    assert (tmp_path / PROGRAM).exists()


def test_rounded_activations_are_kept_as_a_program(tmp_path: Path):
    source, graph = smaller("gpt2", "mlp")
    [use] = graph.sites[0].uses
    round_activations(graph, [Point(use.activation.name, (use.node.name,), Rounding("tensor"))])
    said = source._save_smaller(tmp_path, graph)
    assert "its activations are rounded" in said
    assert said.endswith("torch.export.load, after import compressor.rounded")
    loaded = torch.export.load(tmp_path / PROGRAM).module(check_guards=False)
    with torch.no_grad():
        found = loaded(*(graph.example[port.name] for port in graph.inputs))[0]
    torch.testing.assert_close(found, graph.run(graph.example)["logits"])


@pytest.mark.parametrize(("name", "kinds", "first_only"), [("gpt2", ("heads",), False), ("llama", ("mlp",), True)])
def test_what_a_configuration_cannot_tell_is_kept_as_a_program(name, kinds, first_only, tmp_path):
    source, graph = smaller(name, *kinds, first_only=first_only)
    assert resized(source.model, graph)[0] is None
    said = source._save_smaller(tmp_path, graph)
    assert said.startswith("from_pretrained cannot load the smaller model: ")
    assert [path.name for path in tmp_path.iterdir()] == [PROGRAM]
    loaded = torch.export.load(tmp_path / PROGRAM).module(check_guards=False)
    feeds = [graph.example[port.name] for port in graph.inputs]
    with torch.no_grad():
        torch.testing.assert_close(loaded(*feeds)[0], graph.run(graph.example)["logits"])


def test_a_model_that_kept_its_shapes_is_not_resized():
    source = CausalLM("tiny", "tiny", build(*CAUSAL["gpt2"]), Options())
    assert not is_resized(source.model, source.lower())
