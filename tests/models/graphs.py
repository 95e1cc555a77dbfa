"""Small, untrained models as graphs in float64, for what must hold on every architecture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from compressor.graph import Graph, Port, lower
from compressor.models.causal_lm import CausalLM
from compressor.models.masked_lm import MaskedLM
from compressor.source import Options
from tests.models.architectures import CAUSAL, IMAGE, MASKED, VOCABULARY, Spec, build

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TORCHVISION = (
    "resnet18", "resnext50_32x4d", "regnet_y_400mf", "squeezenet1_1", "densenet121", "mobilenet_v2",
    "mobilenet_v3_small", "efficientnet_b0", "vgg11", "googlenet", "shufflenet_v2_x0_5", "vit_b_16", "swin_t",
    "convnext_tiny",
)  # fmt: skip

_PICTURE = {"image_size": 32, "num_channels": 3, "num_labels": 4}
_SWIN = _PICTURE | {"patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_REGNET = _PICTURE | {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], "groups_width": 4}
_EFFICIENTNET = _PICTURE | {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320}
_BOTTLENECK = _PICTURE | {"hidden_sizes": [16, 32], "depths": [1, 2], "embedding_size": 8, "layer_type": "bottleneck"}
PICTURES: dict[str, Spec] = IMAGE | {
    "deit": ("DeiTConfig", IMAGE["vit"][1], "DeiTForImageClassification"),
    "swin": ("SwinConfig", _SWIN, "SwinForImageClassification"),
    "regnet": ("RegNetConfig", _REGNET, "RegNetForImageClassification"),
    "efficientnet": ("EfficientNetConfig", _EFFICIENTNET, "EfficientNetForImageClassification"),
    "resnet-bottleneck": ("ResNetConfig", _BOTTLENECK, "ResNetForImageClassification"),
}
_T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_ff": 32, "d_kv": 4, "num_layers": 2, "num_heads": 4}


def causal(spec: Spec) -> Graph:
    return CausalLM("tiny", "tiny", build(*spec), Options()).lower("float64")


def encoder(spec: Spec) -> Graph:
    return MaskedLM("tiny", "tiny", build(*spec), Options()).lower("float64")


def picture(spec: Spec) -> Graph:
    model = build(*spec)
    return classifier(model, lambda x: model(pixel_values=x).logits, 32)


def classifier(model: nn.Module, forward: Callable[..., Any], size: int) -> Graph:
    """An image classifier that was built in float32, on images (2, 3, size, size)."""
    model.eval().double()
    batch, images = {0: "batch"}, torch.randn(2, 3, size, size, dtype=torch.float64)
    ports = (Port("pixel_values", batch),), (Port("logits", batch),)
    return lower(model, lambda x: (forward(x),), {"pixel_values": images}, *ports)


def t5() -> Graph:
    """An encoder and a decoder that reads it."""
    torch.manual_seed(0)
    config = transformers.T5Config(**_T5, decoder_start_token_id=0)
    model = transformers.T5ForConditionalGeneration(config).eval().double()
    ids = {name: torch.randint(3, 96, (2, n)) for name, n in (("input_ids", 7), ("decoder_input_ids", 5))}
    source, target = {0: "batch", 1: "sequence"}, {0: "batch", 1: "target"}

    def forward(ids: torch.Tensor, decoder: torch.Tensor) -> tuple[torch.Tensor]:
        return (model(input_ids=ids, decoder_input_ids=decoder, use_cache=False).logits,)

    ports = (Port("input_ids", source), Port("decoder_input_ids", target))
    return lower(model, forward, ids, ports, (Port("logits", target),))


def cifar(name: str) -> Graph:
    """A trained ResNet-20 or ResNet-56, with shortcuts that pad channels."""
    from benchmarks import cifar_resnet

    model = getattr(cifar_resnet, name)().module
    return classifier(model, model, 32)


def torchvision_model(name: str) -> Graph:
    """One of torchvision's classifiers, untrained, of ten classes."""
    import torchvision

    torch.manual_seed(0)
    options: dict[str, Any] = {"image_size": 64} if name == "vit_b_16" else {}
    if name == "googlenet":
        options = {"aux_logits": False, "init_weights": False}
    model = getattr(torchvision.models, name)(num_classes=10, **options)
    return classifier(model, model, 64)


def everything() -> dict[str, Callable[[], Graph]]:
    """Every architecture of transformers that is tried, by name, and how to make its graph."""
    makers: dict[str, Callable[[], Graph]] = {}
    for table, make in ((CAUSAL, causal), (MASKED, encoder), (PICTURES, picture)):
        makers |= {name: partial(make, spec) for name, spec in table.items()}
    return makers | {"t5": t5}
