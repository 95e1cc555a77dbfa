"""Beside an artifact lies what transformers needs to load it, and to run model.onnx with its own runner."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.models.causal_lm import greedy
from compressor.models.hub import HubSource
from compressor.onnx_file import save, to_onnx
from compressor.source import Options
from tests.trained import lowered

pytest.importorskip("transformers.exporters.runners", reason="this transformers has no runner of exported models")


def written(source: Any, folder: Path) -> Any:
    """transformers' own idea of the folder, with the model in it."""
    from transformers.exporters.base import ExportedModel

    graph = source.lower()
    save(to_onnx(graph), folder)
    source.save(folder, graph)
    return ExportedModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory) -> tuple[Any, Any, Any, Path]:
    """(source, graph, transformers' runner of the written folder, the folder)."""
    from transformers.exporters.base import ExportedModel

    source, graph = lowered("tiny-gpt2")
    folder = tmp_path_factory.mktemp("artifact")
    save(to_onnx(graph), folder)
    source.save(folder, graph)
    return source, graph, ExportedModel.from_pretrained(folder), folder


def test_transformers_own_runner_gives_the_logits_of_the_model(tiny_gpt2):
    source, graph, exported, _ = tiny_gpt2
    assert type(exported.runners["model"]).__name__ == "OnnxModelRunner"
    for feeds in (*source.workloads().values(), graph.example):
        out, wanted = exported(**feeds), graph.run(feeds)
        assert list(out) == list(wanted)
        for name in out:
            torch.testing.assert_close(out[name], wanted[name], rtol=1e-4, atol=1e-4)


def test_transformers_own_runner_generates_the_tokens_of_the_model(tiny_gpt2):
    source, graph, exported, _ = tiny_gpt2
    tokens = source.generate(lambda feeds: exported(**feeds), 16)
    assert torch.equal(tokens, source.generate(graph.run, 16))
    assert len(tokens.unique()) > 3


def test_the_saved_tokenizer_and_configuration_are_enough_to_write_text(tiny_gpt2):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    source, _, exported, folder = tiny_gpt2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The function returns", return_tensors="pt")
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    made = greedy(lambda feeds: exported(**feeds), source.feeds, ids, mask, 8)
    with torch.no_grad():
        whole = source.model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokenizer.decode(made[0]) == source.tokenizer.decode(whole[0, ids.shape[1] :])
    assert AutoConfig.from_pretrained(folder).n_layer == exported.config.n_layer == 4
    assert GenerationConfig.from_pretrained(folder).eos_token_id == source.model.generation_config.eos_token_id


def test_the_manifest_names_the_inputs_and_nothing_of_this_machine(tiny_gpt2):
    _, graph, _, folder = tiny_gpt2
    manifest = json.loads((folder / "export.json").read_text())
    metadata = manifest["components"]["model"]["metadata"]
    assert manifest["export_format"] == "onnx"
    assert manifest["components"]["model"]["file"] == "model.onnx"
    assert list(metadata["kwargs"]) == [port.name for port in graph.inputs]
    assert (metadata["architecture"], metadata["export_dtype"]) == ("GPT2LMHeadModel", "float32")
    here = [str(Path.home()), str(Path(__file__).parents[2].resolve()), str(folder)]
    for file in folder.glob("*.json"):
        assert not [path for path in here if len(path) > 5 and path in file.read_text()], file.name


@pytest.mark.parametrize("task", ["masked", "image"])
def test_the_runner_loads_every_other_task_too(checkpoints, tmp_path, task):
    source = HubSource.open(str(checkpoints[task]), Options())
    exported = written(source, tmp_path)
    feeds = source.example()
    torch.testing.assert_close(exported(**feeds)["logits"], source.lower().run(feeds)["logits"], rtol=1e-4, atol=1e-4)
    assert {"config.json", "export.json", "model.onnx"} <= {path.name for path in tmp_path.iterdir()}
