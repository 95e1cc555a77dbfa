"""Channels of every architecture that is served: the law of cutting holds, and caches shrink with their heads."""

from typing import Any

import pytest
import torch
import transformers

from compressor.channel_listing import listing
from compressor.channels import find_groups
from compressor.cut import cut, mask
from compressor.graph import Graph, Port, lower
from compressor.models.causal_lm import CausalLM, greedy
from compressor.models.masked_lm import MaskedLM
from compressor.source import Options
from tests.compressor.laws import check_all_laws, some
from tests.models.architectures import CAUSAL, IMAGE, MASKED, VOCABULARY, Spec, build

PICTURE = {"image_size": 32, "num_channels": 3, "num_labels": 4}
SWIN = PICTURE | {"patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
REGNET = PICTURE | {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "groups_width": 4}
EFFICIENTNET = PICTURE | {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320}
BOTTLENECK = PICTURE | {"hidden_sizes": [16, 32], "depths": [1, 2], "embedding_size": 8, "layer_type": "bottleneck"}
PICTURES: dict[str, Spec] = IMAGE | {
    "deit": ("DeiTConfig", IMAGE["vit"][1], "DeiTForImageClassification"),
    "swin": ("SwinConfig", SWIN, "SwinForImageClassification"),
    "regnet": ("RegNetConfig", REGNET, "RegNetForImageClassification"),
    "efficientnet": ("EfficientNetConfig", EFFICIENTNET, "EfficientNetForImageClassification"),
    "resnet-bottleneck": ("ResNetConfig", BOTTLENECK, "ResNetForImageClassification"),
}


def picture_graph(spec: Spec) -> Graph:
    model = build(*spec).double()
    example = {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64)}
    batch = {0: "batch"}
    return lower(
        model,
        lambda x: (model(pixel_values=x).logits,),
        example,
        (Port("pixel_values", batch),),
        (Port("logits", batch),),
    )


def text_graph(spec: Spec, source: type[CausalLM] | type[MaskedLM]) -> Graph:
    return source("tiny", "tiny", build(*spec), Options()).lower("float64")


def quick(table: dict[str, Any], *names: str) -> list[Any]:
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in table]


@pytest.mark.parametrize("name", quick(CAUSAL, "gpt2", "llama"))
def test_causal_models_are_cut_as_they_are_masked(name: str):
    check_all_laws(text_graph(CAUSAL[name], CausalLM))


@pytest.mark.parametrize("name", quick(MASKED))
def test_encoders_are_cut_as_they_are_masked(name: str):
    check_all_laws(text_graph(MASKED[name], MaskedLM))


@pytest.mark.parametrize("name", quick(PICTURES, "resnet", "swin"))
def test_image_models_are_cut_as_they_are_masked(name: str):
    check_all_laws(picture_graph(PICTURES[name]))


@pytest.mark.slow
def test_an_encoder_and_a_decoder_are_cut_as_they_are_masked():
    torch.manual_seed(0)
    options = {"vocab_size": VOCABULARY, "d_model": 16, "d_ff": 32, "d_kv": 4, "num_layers": 2, "num_heads": 4}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**options, decoder_start_token_id=0))
    model = model.eval().double()
    example = {"input_ids": torch.randint(3, VOCABULARY, (2, 7)), "decoder_input_ids": torch.randint(3, 96, (2, 5))}
    source, target = {0: "batch", 1: "sequence"}, {0: "batch", 1: "target"}
    graph = lower(
        model,
        lambda ids, decoder: (model(input_ids=ids, decoder_input_ids=decoder, use_cache=False).logits,),
        example,
        (Port("input_ids", source), Port("decoder_input_ids", target)),
        (Port("logits", target),),
    )
    check_all_laws(graph)


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
