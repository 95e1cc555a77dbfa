"""A run's state in one safetensors file, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Groups = Mapping[str, Mapping[str, Tensor]]


class Checkpoint:
    """Numbers and groups of tensors of the run that `key` stands for; nothing is kept where there is no folder."""

    def __init__(self, folder: Path | None, key: str, name: str = "recover"):
        self._path = folder / f"{name}-{key[:16]}.safetensors" if folder else None

    def save(self, numbers: Mapping[str, Any], groups: Groups) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        save_file(_flat(groups), partial, {"numbers": json.dumps(dict(numbers))})
        os.replace(partial, self._path)

    def load(self) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
        """What was saved last, or None when there is nothing that can be read."""
        if self._path is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, "pt") as file:
                numbers = json.loads(file.metadata()["numbers"])
                flat = {key: file.get_tensor(key) for key in list(file.keys())}
        except (SafetensorError, OSError):
            return None
        groups: dict[str, dict[str, Tensor]] = {}
        for key, x in flat.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = x
        return numbers, groups


def _flat(groups: Groups) -> dict[str, Tensor]:
    """By `group/name`; a copy of each, since safetensors refuses tensors that share memory."""
    return {
        f"{group}/{name}": x.clone(memory_format=torch.contiguous_format)
        for group, members in groups.items()
        for name, x in members.items()
    }
