"""One artifact of a trained model, made once."""

from pathlib import Path

import pytest

from compressor import driver
from compressor.proof.report import Report
from tests.timing import hurried

RESNET = "export{model=tiny-resnet,samples=64,max_drop=5} | sparsify{pattern=2:4,samples=16}"


@pytest.fixture(scope="session")
def resnet(tmp_path_factory) -> tuple[Path, Report]:
    """tiny-resnet at 2:4: the folder and its report."""
    folder = tmp_path_factory.mktemp("artifact") / "resnet"
    with hurried():
        return folder, driver.export(None, RESNET, output=folder)
