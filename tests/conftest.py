"""What every test stands on: one thread, no network, the same random numbers each time."""

import atexit
import os
import shutil
import tempfile

# Before transformers is imported: it reads them once. Child processes inherit them.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "COMPRESS_CACHE": tempfile.mkdtemp(prefix="compress-cache-"),
}

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.timing import hurried

atexit.register(shutil.rmtree, os.environ["COMPRESS_CACHE"], ignore_errors=True)

# More threads than cores make sums differ from run to run, and tests slower.
torch.set_num_threads(1)

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded_and_tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed torch; afterwards, nothing global is changed and no half-written folder lies about."""
    torch.manual_seed(0)
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    assert torch.is_grad_enabled(), "the test left gradients switched off"
    assert torch.get_default_dtype() == torch.float32, "the test left another default dtype"
    partial = list(folder.rglob(".*.partial-*")) if folder else []
    assert not partial, f"left behind: {partial}"


@pytest.fixture
def quick() -> Iterator[None]:
    with hurried():
        yield
