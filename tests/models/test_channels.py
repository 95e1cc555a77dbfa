"""Channels of every architecture that is served: the law of cutting holds, and caches shrink with their heads."""

import pytest
import torch

from compressor.channels.cut import cut, mask
from compressor.channels.groups import find_groups, find_orders
from compressor.channels.listing import listing
from compressor.channels.permute import permute, why_fixed
from compressor.models.causal_lm import CausalLM, greedy
from compressor.source import Options
from tests.compressor.laws import CLOSE, check_all_laws, some, unsettle
from tests.models import graphs
from tests.models.architectures import CAUSAL, VOCABULARY, build

QUICK = ("gpt2", "llama", "resnet")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in graphs.everything()]
)
def test_every_architecture_is_cut_as_it_is_masked(name: str):
    check_all_laws(graphs.everything()[name]())


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in graphs.everything()]
)
def test_every_architecture_computes_the_same_with_its_channels_in_another_order(name: str):
    graph = graphs.everything()[name]()
    unsettle(graph)
    # What the caches of the example hold has the order of the channels that it came from.
    states = {port.name for port in graph.inputs if port.is_state}
    feeds = {key: torch.zeros_like(x) if key in states else x for key, x in graph.example.items()}
    before, first = graph.run(feeds), graph.outputs[0].name
    groups = [one for one in find_orders(graph) if not why_fixed(graph, one)]
    weights = {key: x.clone() for key, x in graph.module.named_parameters()}
    permute(graph, {group.name: torch.randperm(group.units) for group in groups})
    assert groups
    rounding = 1e-5 if "float32" in graph.text() else CLOSE  # some models normalize in float32, whatever their dtype
    assert (graph.run(feeds)[first] - before[first]).abs().max() < rounding
    assert any(not torch.equal(x, weights[key]) for key, x in graph.module.named_parameters())


def test_the_stream_of_a_transformer_can_change_its_order_and_lose_nothing():
    [stream] = [one for one in find_groups(graphs.everything()["gpt2"]()) if one.kind == "width" and not one.ordered]
    assert stream.frozen == "a layer normalization takes its statistics over them"
    assert {one.role for one in stream.slices if "ln_1" in one.name} == {"follows"}


@pytest.mark.slow
@pytest.mark.skipif(not graphs.SHARED.is_dir(), reason="the trained CIFAR-10 ResNets are not here")
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_a_resnet_whose_shortcuts_pad_channels_is_cut_as_it_is_masked(name: str):
    check_all_laws(graphs.cifar(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", graphs.TORCHVISION)
def test_the_classifiers_of_torchvision_are_cut_as_they_are_masked(name: str):
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ImportError)
    check_all_laws(graphs.torchvision_model(name))


def test_the_caches_of_a_cut_model_shrink_and_its_greedy_text_is_that_of_the_masked_one():
    source = CausalLM("tiny", "tiny", build(*CAUSAL["gpt2"]), Options())
    graph = source.lower()
    masked = graph.copy()
    keep = some(find_groups(graph), share=0.5)
    cut(graph, keep)
    mask(masked, keep)
    ids, attention = torch.randint(5, VOCABULARY, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    attention[0, :4] = 0
    assert graph.run(source.feeds(ids))["present.0.key"].shape[1] == 2
    ours = greedy(graph.run, source.feeds, ids, attention, 12)
    assert torch.equal(ours, greedy(masked.run, source.feeds, ids, attention, 12))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_cache_is_filled_and_read_in_the_order_of_its_heads(name: str):
    source = CausalLM("tiny", "tiny", build(*CAUSAL[name]), Options())
    graph = source.lower("float64")
    heads = [group for group in find_orders(graph) if group.kind == "heads"]
    ids, attention = torch.randint(5, VOCABULARY, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    before, caches = greedy(graph.run, source.feeds, ids, attention, 12), graph.run(graph.example)
    permute(graph, {group.name: torch.arange(group.units).flip(0) for group in heads})
    assert torch.equal(greedy(graph.run, source.feeds, ids, attention, 12), before)
    new = graph.run(graph.example)["present.0.value"][:, :, -1]  # (batch, heads, head size): of the last token
    assert torch.allclose(new, caches["present.0.value"][:, :, -1].flip(-1))


def test_a_capture_in_half_precision_is_cut_as_the_first_one_was():
    source = CausalLM("tiny", "tiny", build(*CAUSAL["llama"]), Options())
    graph, half = source.lower(), source.lower("float16")
    cut(graph, some(find_groups(graph), share=0.5))
    with torch.no_grad():
        graph.sites[0].weight.mul_(0.5)
    graph.repeat_on(half)
    found = {name: (x.shape, x.dtype) for name, x in half.module.named_parameters()}
    assert found == {name: (x.shape, torch.float16) for name, x in graph.module.named_parameters()}
    feeds = {name: x.half() if x.is_floating_point() else x for name, x in graph.example.items()}
    difference = half.run(feeds)["logits"].float() - graph.run(graph.example)["logits"]
    assert difference.norm() < 0.02 * graph.run(graph.example)["logits"].norm()


def test_the_groups_of_a_grouped_query_model_are_these():
    graph = CausalLM("tiny", "tiny", build(*CAUSAL["llama"]), Options()).lower()
    found = [group for group in find_groups(graph) if not group.frozen]
    assert (
        listing(found[:2])
        == """\
model.layers.0.self_attn.q_proj.weight: heads, 2 units
  produces 8 of model.layers.0.self_attn.q_proj.weight axis 0
  produces 4 of model.layers.0.self_attn.k_proj.weight axis 0
  produces 4 of model.layers.0.self_attn.v_proj.weight axis 0
  consumes 8 of model.layers.0.self_attn.o_proj.weight axis 1
  follows 1 of past_key_values.0.key axis 1 (state)
  follows 1 of past_key_values.0.value axis 1 (state)
model.layers.0.mlp.gate_proj.weight: mlp, 32 units
  produces 1 of model.layers.0.mlp.gate_proj.weight axis 0
  produces 1 of model.layers.0.mlp.up_proj.weight axis 0
  consumes 1 of model.layers.0.mlp.down_proj.weight axis 1"""
    )
