"""Tiny, untrained models of the architectures that are served, made from their configurations."""

from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

DECODER = dict(
    vocab_size=96, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
GROUPED = DECODER | dict(num_key_value_heads=2, head_dim=4)
ENCODER = DECODER | dict(pad_token_id=1, type_vocab_size=2)
PICTURE = dict(image_size=32, num_channels=3, num_labels=10)

# name -> (configuration, its options, model)
CAUSAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2Config", dict(vocab_size=96, n_embd=16, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0), "GPT2LMHeadModel"),
    "opt": ("OPTConfig", DECODER | dict(ffn_dim=32, word_embed_proj_dim=16, pad_token_id=1), "OPTForCausalLM"),
    "llama": ("LlamaConfig", GROUPED, "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", GROUPED, "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", GROUPED, "Qwen3ForCausalLM"),
    "mistral": ("MistralConfig", GROUPED | dict(sliding_window=4), "MistralForCausalLM"),
    "gemma": ("GemmaConfig", GROUPED, "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", GROUPED | dict(sliding_window=4), "Gemma2ForCausalLM"),
    "phi": ("PhiConfig", DECODER, "PhiForCausalLM"),
    "gpt-neox": ("GPTNeoXConfig", DECODER, "GPTNeoXForCausalLM"),
    "bloom": ("BloomConfig", dict(vocab_size=96, hidden_size=16, n_layer=2, n_head=4), "BloomForCausalLM"),
}
BERT = ENCODER
DISTILBERT = dict(vocab_size=96, dim=16, hidden_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64, pad_token_id=0)
MASKED = {
    "bert": ("BertConfig", ENCODER, "BertForMaskedLM"),
    "roberta": ("RobertaConfig", ENCODER, "RobertaForMaskedLM"),
    "distilbert": ("DistilBertConfig", DISTILBERT, "DistilBertForMaskedLM"),
}
SEQUENCE = {
    "bert": ("BertConfig", ENCODER | dict(num_labels=3), "BertForSequenceClassification"),
    "roberta": ("RobertaConfig", ENCODER | dict(num_labels=3), "RobertaForSequenceClassification"),
    "distilbert": ("DistilBertConfig", DISTILBERT | dict(num_labels=3), "DistilBertForSequenceClassification"),
    "gpt2": ("GPT2Config", CAUSAL["gpt2"][1] | dict(num_labels=3, pad_token_id=1), "GPT2ForSequenceClassification"),
}
IMAGE = {
    "vit": ("ViTConfig", PICTURE | dict(patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4), "ViTForImageClassification"),
    "resnet": ("ResNetConfig", PICTURE | dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"), "ResNetForImageClassification"),
    "convnext": ("ConvNextConfig", PICTURE | dict(patch_size=2, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), "ConvNextForImageClassification"),
    "mobilenet-v2": ("MobileNetV2Config", PICTURE | dict(depth_multiplier=0.1, min_depth=4), "MobileNetV2ForImageClassification"),
}


def build(config: str, options: dict[str, Any], model: str) -> Any:
    """The model with random weights, its normalizations made to matter."""
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    return made
