"""A language model without half of its heads, from the recipe to the file: caches, tokens, costs."""

import pytest

from compressor import driver
from compressor.onnx_file import inputs
from tests.timing import hurried

pytestmark = pytest.mark.slow

RECIPE = (
    "export{model=tiny-gpt2,samples=4} | "
    'channels{amount="mlp=0.5,heads=0.5",importance=magnitude,refit=false} | '
    "sparsify{pattern=2:4,method=magnitude,refit=0}"
)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "smaller"
    with hurried():
        return folder, driver.export(None, RECIPE, output=folder)


def test_the_artifact_goes_on_from_its_smaller_caches_as_torch_does(smaller):
    folder, report = smaller
    assert report, report.promises
    assert report.parity is not None
    assert report.parity.same_tokens
    assert inputs(folder / "model.onnx")["past_key_values.0.key"][0] == ["batch", 2, "past_sequence", 32]


def test_the_report_tells_shapes_and_costs_beside_dense(smaller):
    _, report = smaller
    found = {site.name: (site.dense_shape, site.shape, site.found) for site in report.sites}
    assert found["transformer.h.0.mlp.c_proj.weight"] == ((384, 128), (192, 128), "2:4")
    [prefill, _] = report.costs
    assert prefill.compressed.flops < 0.7 * prefill.dense.flops
    assert prefill.compressed.parameters == report.sizes.parameters < prefill.dense.parameters
    assert prefill.compressed.peak_bytes < prefill.dense.peak_bytes
