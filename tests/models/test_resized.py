"""A model that has lost channels is loaded again by its own library, with the same logits, where its sizes allow it."""

from pathlib import Path

import pytest
import torch

from compressor.channels.cut import cut
from compressor.channels.groups import find_groups
from compressor.graph import Graph
from compressor.models.causal_lm import CausalLM
from compressor.models.pretrained import PROGRAM
from compressor.models.resized import is_resized, resized
from compressor.source import Options
from tests.models.architectures import CAUSAL, build


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
    source, graph = smaller(name, *kinds)
    assert is_resized(source.model, graph)
    assert "from_pretrained loads" in source._save_smaller(tmp_path, graph)
    loaded = type(source.model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found = source.forward(loaded, graph.example)[0]
    torch.testing.assert_close(found, graph.run(graph.example)["logits"])
    assert sum(x.numel() for x in loaded.parameters()) < sum(x.numel() for x in source.model.parameters())


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
