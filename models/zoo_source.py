"""The models that ship with Compressor, opened like any other folder, with their own data."""

import dataclasses
from typing import Any

from compressor.models import zoo
from compressor.models.hub import open_pretrained
from compressor.models.task import Options
from compressor.source import Source


class ZooSource:
    """Opens zoo names."""

    @staticmethod
    def accepts(name: Any) -> bool:
        return isinstance(name, str) and name in zoo.NAMES

    @staticmethod
    def open(name: str, options: Options) -> Source:
        folder = zoo.folder(name)
        data = options.data or str(folder / "data")
        return open_pretrained(str(folder), name, dataclasses.replace(options, data=data))

    @staticmethod
    def describe() -> dict[str, str]:
        """One line about each zoo model."""
        return zoo.describe()
