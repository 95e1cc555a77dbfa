"""Every architecture that is served, as a graph beside the model itself, at two sizes."""

from typing import Any

import pytest
import torch

from compressor.errors import SourceError
from compressor.models.causal_lm import CausalLM
from compressor.models.image_classification import ImageClassification
from compressor.models.masked_lm import Encoder, MaskedLM
from compressor.models.pretrained import Pretrained
from compressor.models.sequence_classification import SequenceClassification
from compressor.source import Options, Source
from tests.models.architectures import CAUSAL, IMAGE, MASKED, SEQUENCE, VOCABULARY, Spec, build, image_processor

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def quick(table: dict[str, Spec], *names: str) -> list[Any]:
    """All of a table; the default run takes the named ones."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in table]


def source(cls: type[Pretrained], spec: Spec) -> Any:
    return cls("tiny", "tiny", build(*spec), Options())


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(5, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded(batch: int, length: int, padding: int = 2) -> torch.Tensor:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :padding] = 0
    return mask


# *** causal language models ***


@pytest.mark.parametrize("name", quick(CAUSAL, "gpt2", "llama"))
def test_a_causal_model_gives_the_same_logits_as_a_graph(name: str):
    made = source(CausalLM, CAUSAL[name])
    graph = made.lower()
    for batch, length in ((1, 7), (3, 12)):  # longer than a sliding window
        ids, mask = tokens(batch, length), left_padded(batch, length) if batch > 1 else None
        logits = graph.run(made.feeds(ids, mask))["logits"]
        with torch.no_grad():
            positions = (
                {"position_ids": made.feeds(ids, mask)["position_ids"]}
                if mask is not None and made.takes_positions
                else {}
            )
            wanted = made.model(input_ids=ids, attention_mask=mask, **positions).logits
        seen = torch.ones_like(ids).bool() if mask is None else mask.bool()
        torch.testing.assert_close(logits[seen], wanted[seen], **CLOSE)
    check_the_cache(made, graph)


def check_the_cache(made: CausalLM, graph: Any) -> None:
    """Two calls, the second with what the first left in the cache, are one call."""
    ids, mask = tokens(2, 11), left_padded(2, 11)
    whole = graph.run(made.feeds(ids, mask))
    first = graph.run(made.feeds(ids[:, :8], mask[:, :8]))
    past = {name.replace("present", "past_key_values"): x for name, x in first.items() if name != "logits"}
    second = graph.run(made.feeds(ids[:, 8:], mask, past))
    torch.testing.assert_close(second["logits"], whole["logits"][:, 8:], **CLOSE)
    assert all(second[name].shape[2] == 11 for name in second if name != "logits")


@pytest.mark.parametrize("name", quick(CAUSAL, "gpt2", "llama"))
def test_greedy_tokens_are_those_of_transformers_generate(name: str):
    from compressor.models.causal_lm import greedy

    made = source(CausalLM, CAUSAL[name])
    ids, mask = tokens(3, 9), left_padded(3, 9, padding=4)
    ours = greedy(made.lower().run, made.feeds, ids, mask, 12)
    with torch.no_grad():
        theirs = made.model.generate(
            ids, attention_mask=mask, max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None
        )
    assert ours.tolist() == theirs[:, 9:].tolist()


def test_a_model_whose_state_is_no_cache_is_refused_by_name():
    spec = (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
        "MambaForCausalLM",
    )
    with pytest.raises(SourceError, match=r"tiny \(MambaForCausalLM\) does not keep its state in a key-value cache"):
        source(CausalLM, spec).lower()


def test_another_dtype_leaves_the_model_in_its_own():
    made = source(CausalLM, CAUSAL["gpt2"])
    graph = made.lower("bfloat16")
    assert {x.dtype for x in graph.module.parameters()} == {torch.bfloat16}
    assert {x.dtype for x in made.model.parameters()} == {torch.float32}
    assert graph.example["past_key_values.0.key"].dtype == torch.bfloat16


# *** encoders ***


@pytest.mark.parametrize("name", quick(MASKED, "bert", "distilbert"))
def test_a_masked_model_gives_the_same_logits_as_a_graph(name: str):
    check_the_encoder(source(MaskedLM, MASKED[name]))


@pytest.mark.parametrize("name", quick(SEQUENCE, "distilbert"))
def test_a_sequence_classifier_gives_the_same_logits_as_a_graph(name: str):
    check_the_encoder(source(SequenceClassification, SEQUENCE[name]))


def check_the_encoder(made: Encoder) -> None:
    graph, pad = made.lower(), made.model.config.pad_token_id
    for batch, length in ((1, 5), (3, 8)):
        ids, mask = tokens(batch, length), torch.ones(batch, length, dtype=torch.long)
        if batch > 1:
            ids[0, 6:], mask[0, 6:] = pad, 0
        feeds = made.feeds(ids, mask)
        with torch.no_grad():
            wanted = made.model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(graph.run(feeds)["logits"], wanted, **CLOSE)


# *** images ***


@pytest.mark.parametrize("name", quick(IMAGE, "vit", "resnet"))
def test_an_image_classifier_gives_the_same_logits_as_a_graph(name: str, tmp_path):
    image_processor().save_pretrained(tmp_path)
    made = ImageClassification("tiny", str(tmp_path), build(*IMAGE[name]), Options())
    graph = made.lower()
    for batch in (1, 3):
        pixels = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            wanted = made.model(pixel_values=pixels).logits
        torch.testing.assert_close(graph.run({"pixel_values": pixels})["logits"], wanted, **CLOSE)


# *** the protocol ***


def test_what_a_task_makes_is_a_source():
    assert isinstance(source(CausalLM, CAUSAL["gpt2"]), Source)
