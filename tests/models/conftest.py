"""Checkpoints in the hub's layout, written once for all tests that open them."""

from pathlib import Path

import pytest
import torch

from tests.models.architectures import CAUSAL, IMAGE, MASKED, SEQUENCE, build, image_processor, words_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One folder for each task; not to be written to."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {
        "causal": (CAUSAL["gpt2"], words_tokenizer()),
        "masked": (MASKED["bert"], words_tokenizer("[CLS] $A [SEP]")),
        "sequence": (SEQUENCE["distilbert"], words_tokenizer("[CLS] $A [SEP]")),
        "image": (IMAGE["resnet"], image_processor()),
    }
    for name, (spec, processor) in made.items():
        build(*spec).save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: root / name for name in made}
