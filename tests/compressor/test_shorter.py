"""Models without a block, from the recipe to the file: caches, tokens, and the folder that transformers loads."""

import pytest
import torch

from compressor import driver
from compressor.errors import RecipeError
from compressor.onnx_file import inputs

pytestmark = pytest.mark.slow


def test_a_language_model_without_a_block_goes_on_from_its_caches_as_torch_does(tmp_path):
    from transformers import GPT2LMHeadModel

    report = driver.export(None, "export{model=tiny-gpt2,samples=4} | depth{blocks=1,samples=4}", output=tmp_path / "a")
    assert report, report.promises
    assert report.parity is not None
    assert report.parity.same_tokens
    caches = [name for name in inputs(tmp_path / "a" / "model.onnx") if name.startswith("past_key_values")]
    assert len(caches) == 6  # three of four blocks
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "a").eval()
    assert loaded.config.n_layer == 3
    assert sum(x.numel() for x in loaded.parameters()) == report.sizes.parameters
    assert report.notes[-1] == "from_pretrained loads the smaller model from this folder"


def test_channels_and_codes_may_follow(tmp_path):
    recipe = (
        "export{model=tiny-gpt2,samples=4} | depth{blocks=1,samples=4} | "
        'channels{amount="mlp=0.5",importance=magnitude,refit=false} | quantize{kind=int8,samples=4,sweeps=0}'
    )
    report = driver.export(None, recipe, output=tmp_path / "a")
    assert report, report.promises
    [prefill, _] = report.costs
    assert prefill.compressed.flops < 0.7 * prefill.dense.flops
    assert {site.dtype for site in report.sites if site.status == "changed" and site.op} == {"int8"}
    assert "its activations are rounded" in report.notes[-1]


def test_a_classifier_without_a_block_is_one_of_other_depths(tmp_path):
    from transformers import ResNetForImageClassification

    recipe = "export{model=tiny-resnet,samples=4} | depth{blocks=2,samples=4}"
    report = driver.export(None, recipe, output=tmp_path / "a")
    assert report, report.promises
    loaded = ResNetForImageClassification.from_pretrained(tmp_path / "a").eval()
    whole = driver.open_source("tiny-resnet", driver.resolve("tiny-resnet", None)).lower()
    assert sum(loaded.config.depths) == 4
    images = next(iter(whole.example.values()))
    with torch.no_grad():
        assert loaded(images).logits.shape == whole.run(whole.example)["logits"].shape


def test_a_model_keeps_one_block_and_nothing_is_written(tmp_path):
    with pytest.raises(RecipeError, match="4 blocks cannot be left out"):
        driver.export(None, "export{model=tiny-gpt2} | depth{blocks=4}", output=tmp_path / "a")
    assert not list(tmp_path.iterdir())
