"""Tiny, untrained models of the architectures that are served, and what goes with them: a tokenizer, words, images."""

import random
from typing import Any

import torch
import transformers

VOCABULARY = 96
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [f"w{i}" for i in range(VOCABULARY - len(SPECIAL))]

Spec = tuple[str, dict[str, Any], str]  # configuration, its options, model

_DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = _DECODER | {"num_key_value_heads": 2, "head_dim": 4}
_GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 2,
    "eos_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
_BLOOM = {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4}
_ENCODER = {key: value for key, value in _DECODER.items() if key not in ("bos_token_id", "eos_token_id")}
_ROBERTA = _ENCODER | {"pad_token_id": 1}  # not 0, to tell positions that begin after it from those that do not
_DISTILBERT = {
    "vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip
_CLASSES = {"num_labels": 3}
_PICTURE = {"image_size": 32, "num_channels": 3, "num_labels": 4}
_VIT = _PICTURE | {
    "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4
}  # fmt: skip
_STAGES = _PICTURE | {"hidden_sizes": [8, 16], "depths": [1, 1]}
_RESNET = _STAGES | {"embedding_size": 8, "layer_type": "basic"}
_CONVNEXT = _STAGES | {"patch_size": 2, "num_stages": 2}
_MOBILENET = _PICTURE | {"depth_multiplier": 0.1, "min_depth": 4}

CAUSAL: dict[str, Spec] = {
    "gpt2": ("GPT2Config", _GPT2, "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", _GROUPED, "LlamaForCausalLM"),
    "opt": ("OPTConfig", _DECODER | {"ffn_dim": 32, "word_embed_proj_dim": 16}, "OPTForCausalLM"),
    "qwen2": ("Qwen2Config", _GROUPED, "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", _GROUPED, "Qwen3ForCausalLM"),
    "mistral": ("MistralConfig", _GROUPED | {"sliding_window": 4}, "MistralForCausalLM"),
    "gemma": ("GemmaConfig", _GROUPED, "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", _GROUPED | {"sliding_window": 4}, "Gemma2ForCausalLM"),
    "phi": ("PhiConfig", _DECODER, "PhiForCausalLM"),
    "gpt-neox": ("GPTNeoXConfig", _DECODER, "GPTNeoXForCausalLM"),
    "bloom": ("BloomConfig", _BLOOM, "BloomForCausalLM"),
}
MASKED: dict[str, Spec] = {
    "bert": ("BertConfig", _ENCODER, "BertForMaskedLM"),
    "roberta": ("RobertaConfig", _ROBERTA, "RobertaForMaskedLM"),
    "distilbert": ("DistilBertConfig", _DISTILBERT, "DistilBertForMaskedLM"),
}
SEQUENCE: dict[str, Spec] = {
    "bert": ("BertConfig", _ENCODER | _CLASSES, "BertForSequenceClassification"),
    "roberta": ("RobertaConfig", _ROBERTA | _CLASSES, "RobertaForSequenceClassification"),
    "distilbert": ("DistilBertConfig", _DISTILBERT | _CLASSES, "DistilBertForSequenceClassification"),
    "gpt2": ("GPT2Config", _GPT2 | _CLASSES, "GPT2ForSequenceClassification"),
}
IMAGE: dict[str, Spec] = {
    "vit": ("ViTConfig", _VIT, "ViTForImageClassification"),
    "resnet": ("ResNetConfig", _RESNET, "ResNetForImageClassification"),
    "convnext": ("ConvNextConfig", _CONVNEXT, "ConvNextForImageClassification"),
    "mobilenet-v2": ("MobileNetV2Config", _MOBILENET, "MobileNetV2ForImageClassification"),
}


def build(config: str, options: dict[str, Any], model: str) -> Any:
    """The model, with weights large enough that every part of it shows in the outputs."""
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    for name, x in made.named_parameters():
        if x.ndim > 1:
            x.data.normal_(std=0.5 if "embed" in name or "wte" in name else x[0].numel() ** -0.5)
    return made


def words_tokenizer(around: str = "$A") -> Any:
    """A tokenizer of words `w0 w1 ...`. around: what it puts about a text, as in `[CLS] $A [SEP]`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = [(token, vocabulary[token]) for token in SPECIAL if token in around]
    pair = around.replace("$A", "$A $B:1")
    tokenizer.post_processor = processors.TemplateProcessing(single=around, pair=pair, special_tokens=specials)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True)))


def words(n: int, seed: int = 0) -> str:
    """n words, ten to a line."""
    drawn = random.Random(seed).choices(WORDS, k=n)
    return "\n".join(" ".join(drawn[i : i + 10]) for i in range(0, n, 10))


def image_processor() -> Any:
    size = {"height": 32, "width": 32}
    return transformers.ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
