"""Train tiny-resnet from nothing on scikit-learn's handwritten digits.

    python -m compressor.models.zoo.train_tiny_resnet --output FOLDER

writes a folder in the Hugging Face layout with `data/train.parquet` and `data/test.parquet`, and prints top-1 on the
test images. Every pixel the model sees, in training and after, comes out of the image processor saved beside it.
One thread, fixed seed, about a minute.
"""

import argparse
import io
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE, BATCH, N_TEST = 32, 64, 500
BLACK = -1.0  # after normalisation


def digits() -> tuple[list[Any], Tensor]:
    """The 1,797 digits as 8 x 8 RGB pictures, and their labels (n,)."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = (found.images * (255 / 16)).round().astype("uint8")  # (n, 8, 8), from 0..16
    return [Image.fromarray(each).convert("RGB") for each in pixels], torch.from_numpy(found.target)


def split(labels: Tensor) -> tuple[list[int], list[int]]:
    """Rows for training, and the last 500 for the test: neighbours tend to share a writer, so nothing is shuffled."""
    rows = list(range(len(labels)))
    return rows[:-N_TEST], rows[-N_TEST:]


def make_processor() -> Any:
    """To 32 x 32, to 0..1, to -1..1. Loads with or without torchvision."""
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def make_model() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    names = [str(digit) for digit in range(10)]
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=3, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[2, 2, 2], layer_type="basic",
            id2label=dict(enumerate(names)), label2id={name: row for row, name in enumerate(names)},
        )
    )  # fmt: skip


def augmented(X: Tensor, generator: torch.Generator) -> Tensor:
    """Each image X (B, C, H, W) turned up to 10 degrees, scaled by up to 10 %, moved by up to 1/8 of its side."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(X), generator=generator) - 1) * limit

    angle, scale = uniform(math.radians(10)), 1 + uniform(0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([cos, -sin, uniform(0.25), sin, cos, uniform(0.25)], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(X.shape), align_corners=False)
    return F.grid_sample(X - BLACK, grid, align_corners=False) + BLACK  # zeros outside


def train(model: Any, X: Tensor, labels: Tensor, epochs: int, peak: float) -> None:
    """AdamW, one cycle of warm-up and cosine decay."""
    generator = torch.Generator().manual_seed(0)
    steps = epochs * (len(X) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    start = time.time()
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(X), generator=generator)[: len(X) // BATCH * BATCH]
        total = 0.0
        for rows in order.split(BATCH):
            loss = F.cross_entropy(model(augmented(X[rows], generator)).logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * BATCH / len(order)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}/{epochs}  loss {total:.4f}  {time.time() - start:.0f} s", flush=True)


def top1(model: Any, X: Tensor, labels: Tensor) -> float:
    """Share of images X (n, C, H, W) whose largest logit is their label's."""
    model.eval()
    with torch.no_grad():
        return (model(X).logits.argmax(-1) == labels).float().mean().item()


def write_parquet(path: Path, pictures: list[Any], labels: list[int]) -> None:
    """Columns `image` (PNG bytes) and `label`, as `datasets` reads and writes them."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    images = [{"bytes": _png(picture), "path": None} for picture in pictures]
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--peak", type=float, default=5e-3, help="highest learning rate")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)

    pictures, labels = digits()
    processor, model = make_processor(), make_model()
    X = processor(pictures, return_tensors="pt")["pixel_values"]  # (n, 3, 32, 32)
    training, test = split(labels)
    train(model, X[training], labels[training], options.epochs, options.peak)

    data = options.output / "data"
    data.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(options.output)
    processor.save_pretrained(options.output)
    for name, rows in (("train", training), ("test", test)):
        write_parquet(data / f"{name}.parquet", [pictures[row] for row in rows], labels[rows].tolist())
        print(f"tiny-resnet: {name} top-1 {100 * top1(model, X[rows], labels[rows]):.2f} % (n={len(rows)})")


if __name__ == "__main__":
    main()
