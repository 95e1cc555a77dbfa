"""The CIFAR-10 ResNets of He et al. 2015, section 4.2 (option-A shortcuts); weights are kept beside the repository.

compress export benchmarks/cifar_resnet.py:resnet20 --sparsity 2:4 --data ../shared/data/FOLDER
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compressor

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Block(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut drops every second pixel and pads with zeros."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.padding = stride, (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class ResNet(nn.Module):
    """Depth 6 n + 2: a 3x3 stem, then three stages of n blocks with 16, 32 and 64 channels."""

    def __init__(self, n: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n, 1)
        self.layer2 = _stage(16, 32, n, 2)
        self.layer3 = _stage(32, 64, n, 2)
        self.linear = nn.Linear(64, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> compressor.Model:
    return _load("resnet20", 3)


def resnet32() -> compressor.Model:
    return _load("resnet32", 5)


def resnet56() -> compressor.Model:
    return _load("resnet56", 9)


def _stage(c_in: int, c_out: int, n: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(c_in, c_out, stride), *(Block(c_out, c_out, 1) for _ in range(n - 1)))


def _load(name: str, n: int) -> compressor.Model:
    from safetensors.torch import load_file

    model = ResNet(n)
    model.load_state_dict(load_file(SHARED / f"{name}-cifar10.safetensors"))
    return compressor.Model(model.eval(), torch.zeros(1, 3, 32, 32), prepare=prepare, labels=CLASSES)


def prepare(image: Any) -> Tensor:
    """A PIL image of 32 x 32 -> (3, 32, 32), normalised as in training."""
    pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).reshape(32, 32, 3)
    return ((pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, 0).contiguous()
