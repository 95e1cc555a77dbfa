"""Images changed at random in ways that leave their labels true. Arrays only."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WAYS = ("crop", "flip")


def augment(x: Tensor, ways: Sequence[str], generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W), each changed on its own."""
    x = crop(x, generator) if "crop" in ways else x
    return flip(x, generator) if "flip" in ways else x


def crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to an eighth of each side; what comes in from outside is zero."""
    n, _, height, width = x.shape
    down, right = height // 8, width // 8
    padded = F.pad(x, (right, right, down, down))
    tops = torch.randint(0, 2 * down + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(0, 2 * right + 1, (n,), generator=generator).tolist()
    cut = [image[:, i : i + height, j : j + width] for image, i, j in zip(padded, tops, lefts, strict=True)]
    return torch.stack(cut)


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Left and right exchanged, in half of them."""
    is_flipped = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(is_flipped[:, None, None, None].to(x.device), x.flip(-1), x)
