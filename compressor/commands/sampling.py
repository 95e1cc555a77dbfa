"""Token after token out of a causal language model's graph or file, its key-value cache carried along."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from compressor.graph import Feeds, Graph, Run

PAST = "past_key_values"

Choose = Callable[[Tensor], int]  # logits (V,) -> token


def tokens(run: Run, blank: Feeds, prompt: Sequence[int], choose: Choose) -> Iterator[int]:
    """The tokens that follow a prompt, without end. blank: inputs of one call with an empty cache."""
    past = {name: x for name, x in blank.items() if name.startswith(PAST)}
    new, length = torch.tensor([list(prompt)]), 0  # (1, S)
    while True:
        length += new.shape[1]
        feeds = {"input_ids": new, "attention_mask": torch.ones(1, length, dtype=torch.long), **past}
        if "position_ids" in blank:
            feeds["position_ids"] = torch.arange(length - new.shape[1], length)[None]
        out = run(feeds)
        past = {name.replace("present", PAST): x for name, x in out.items() if name != "logits"}
        token = choose(out["logits"][0, -1].float())
        yield token
        new = torch.tensor([[token]])


def chooser(temperature: float, seed: int) -> Choose:
    """The likeliest token at temperature 0; else one drawn from softmax(logits / temperature), as the seed has it."""
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(seed)
    return lambda logits: int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator))


# *** inputs ***


def blank_of_graph(graph: Graph) -> dict[str, Tensor]:
    """One call of a graph with an empty cache."""
    dynamic = {port.name: port.dynamic for port in graph.inputs}
    return {
        name: _blank([dynamic[name].get(axis, size) for axis, size in enumerate(x.shape)], x.dtype)
        for name, x in graph.example.items()
    }


def blank(inputs: Mapping[str, tuple[Sequence[int | str], torch.dtype]]) -> dict[str, Tensor]:
    """The same of a file. inputs: name -> shape, with symbols for axes that vary, and dtype."""
    return {name: _blank(shape, dtype) for name, (shape, dtype) in inputs.items()}


def _blank(shape: Sequence[int | str], dtype: torch.dtype) -> Tensor:
    """One sample, and nothing along the other axes that vary."""
    return torch.zeros([size if isinstance(size, int) else int(size == "batch") for size in shape], dtype=dtype)
