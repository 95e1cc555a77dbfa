"""Layers of a transformers model that a graph no longer has, and the configuration of a model without them."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

NUMBERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
KINDS = "layer_types"  # one word for each layer


@dataclass(frozen=True)
class Stack:
    """A list of layers that has lost some. name: of the list (`transformer.h`). kept: numbers of those left, of n."""

    name: str
    n: int
    kept: tuple[int, ...]

    def before(self, name: str) -> str:
        """What a parameter of the shorter model was called in the longer one."""
        if not name.startswith(f"{self.name}."):
            return name
        number, _, rest = name.removeprefix(f"{self.name}.").partition(".")
        return f"{self.name}.{self.kept[int(number)]}.{rest}"


def shortened(model: Any, left: set[str]) -> list[Stack]:
    """The lists of layers some of which are gone as a whole; left: names of the parameters that are still there."""
    found: list[Stack] = []
    for name, module in model.named_modules():
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential))
        if not is_list or any(name.startswith(f"{one.name}.") for one in found):
            continue
        kept = tuple(at for at in range(len(module)) if not _is_gone(module[at], f"{name}.{at}", left))
        if kept and len(kept) < len(module):
            found.append(Stack(name, len(module), kept))
    return found


def _is_gone(module: nn.Module, name: str, left: set[str]) -> bool:
    own = [f"{name}.{one}" for one, _ in module.named_parameters(remove_duplicate=False)]
    return bool(own) and not left.intersection(own)


def former(name: str, stacks: Sequence[Stack]) -> str:
    """What a parameter of the model without some layers was called in the whole one."""
    for stack in stacks:
        name = stack.before(name)
    return name


def configurations(config: Any, stacks: Sequence[Stack]) -> Iterator[Any]:
    """The configuration with the lengths that are left, in every way that it may tell them; a copy each."""
    for edits in itertools.product(*(list(_edits(config, stack)) for stack in stacks)):
        made = copy.deepcopy(config)
        for attribute, place, value in edits:
            now = getattr(made, attribute)
            setattr(made, attribute, value if place is None else [*now[:place], value, *now[place + 1 :]])
        for stack in stacks:
            _thin(made, stack)
        yield made


def _edits(config: Any, stack: Stack) -> Iterator[tuple[str, int | None, int]]:
    """(attribute, place in it, value) of each place where the number of these layers may stand."""
    left = len(stack.kept)
    numbers = [int(part) for part in stack.name.split(".") if part.isdigit()]
    depths = getattr(config, "depths", None)
    if depths and numbers and numbers[-1] < len(depths) and depths[numbers[-1]] == stack.n:
        yield "depths", numbers[-1], left
    for attribute in NUMBERS:
        if getattr(config, attribute, None) == stack.n:
            yield attribute, None, left


def _thin(config: Any, stack: Stack) -> None:
    kinds = getattr(config, KINDS, None)
    if kinds and len(kinds) == stack.n:
        setattr(config, KINDS, [kinds[at] for at in stack.kept])
