"""A transformers model in the shapes of a graph that has lost channels or layers, where its configuration can tell."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from compressor.graph import Graph
from compressor.models.layers import Stack, configurations, former, shortened

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim", "d_ff")
HEADS = ("num_attention_heads", "num_key_value_heads", "n_head", "num_heads")


def is_resized(model: Any, graph: Graph) -> bool:
    """Whether parameters of the model are gone from the graph, or have other shapes there."""
    own = _tensors(graph)
    return any(name not in own or own[name].shape != x.shape for name, x in model.named_parameters())


def resized(model: Any, graph: Graph) -> tuple[Any, str]:
    """(the model with the graph's weights, "") or (None, why it cannot be made).

    Numbers of layers and heads and sizes of hidden layers in the configuration are brought to what is left; the model
    that is made of it must have exactly the shapes of the graph's parameters.
    """
    tensors = _tensors(graph)
    stacks = shortened(model, set(tensors))
    whole = model.state_dict()
    for config in _configurations(model, tensors, stacks):
        try:
            made = type(model)(config).eval()
        except Exception:  # a configuration that contradicts itself
            continue
        state = made.state_dict()
        before = {name: former(name, stacks) for name in state}
        values = {name: tensors.get(old, whole.get(old)) for name, old in before.items()}
        if all(x is not None and x.shape == state[name].shape for name, x in values.items()):
            made.load_state_dict(values)
            return made.to(next(graph.module.parameters()).dtype), ""
    return None, f"{type(model.config).__name__} cannot tell what was removed: layers differ, or it has no such size"


def _configurations(model: Any, tensors: dict[str, Tensor], stacks: Sequence[Stack]) -> Iterator[Any]:
    """The configuration with what each changed length may mean, hidden size or heads, in every combination."""
    changed = {
        (before, after)
        for name, x in model.named_parameters()
        if name in tensors and tensors[name].ndim == x.ndim
        for before, after in zip(x.shape, tensors[name].shape, strict=True)
        if before != after
    }
    config = model.config
    edits = [*_widths(config, changed), *_heads(config, changed)]
    for n in range(len(edits), -1, -1):
        for some in itertools.combinations(edits, n):
            for made in configurations(config, stacks):
                for attribute, value in itertools.chain(*(edit.items() for edit in some)):
                    setattr(made, attribute, value)
                yield made


def _widths(config: Any, changed: set[tuple[int, int]]) -> Iterator[dict[str, int]]:
    for attribute in WIDTHS:
        if hasattr(config, attribute):
            now = getattr(config, attribute) or 4 * config.hidden_size  # GPT-2 says None for four times its width
            yield from ({attribute: after} for before, after in sorted(changed) if before == now)


def _heads(config: Any, changed: set[tuple[int, int]]) -> Iterator[dict[str, int]]:
    """Numbers of heads, which fall in proportion; only where the size of a head is told apart from the width."""
    size = getattr(config, "head_dim", None)
    present = {name: getattr(config, name) for name in HEADS if isinstance(config.to_dict().get(name), int)}
    for before, after in sorted(changed):
        if size and before in {n * size for n in present.values()} and after % size == 0:
            yield {name: n * after // before for name, n in present.items()} | {"head_dim": size}


def _tensors(graph: Graph) -> dict[str, Tensor]:
    named = graph.module.named_parameters(remove_duplicate=False), graph.module.named_buffers()
    return {name: x.detach() for name, x in itertools.chain(*named)}
