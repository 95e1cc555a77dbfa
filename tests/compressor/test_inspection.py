"""What is in a model or a written file, on the axis that is read."""

import json

import pytest
import torch
from torch import nn

from compressor import onnx_file
from compressor.commands.inspection import inspect
from compressor.errors import BackendError, SourceError, UserError
from tests.compressor.tiny import graph_of, normal


def test_an_artifact_shows_the_pattern_of_every_weight_that_was_changed(resnet):
    folder, report = resnet
    found = {site.name: site for site in inspect(folder).sites}
    for site in report.sites:
        assert (found[site.name].found, found[site.name].sparsity) == (site.found, site.sparsity)
        assert found[site.name].where == "Conv axis 1" or site.name == "classifier.1.weight"


def test_a_folder_and_its_file_show_the_same(resnet):
    folder, _ = resnet
    by_folder, by_file, by_text = inspect(folder), inspect(folder / "model.onnx"), inspect(str(folder))
    assert by_folder == by_file == by_text
    assert by_folder.name == "model.onnx"


def test_zeros_and_weights_are_counted(resnet):
    folder, report = resnet
    found = inspect(folder)
    changed = sum(torch.Size(site.shape).numel() for site in report.sites if site.status == "changed")
    assert found.zeros == pytest.approx(changed / 2, abs=20)
    assert found.parameters == sum(torch.Size(site.shape).numel() for site in report.sites)


def test_a_model_shows_its_sites_and_what_is_none():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[:, ::2] = 0  # type: ignore[index]
    found = inspect((model, normal(3, 8)))
    assert [(site.name, site.found, site.sparsity, site.axis) for site in found.sites] == [
        ("0.weight", "2:4", 0.5, 1),
        ("1.weight", "", 0.0, 1),
    ]
    assert found.sites[1].reason == "the head: it makes the first output"
    assert (found.parameters, found.zeros) == (46, 16)


def test_channels_that_can_go_are_shown_where_they_are_asked_for():
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    first, last = inspect((model, normal(3, 8)), channels=True).channels
    assert (first.name, first.kind, first.units, first.weights, first.frozen) == ("0.weight", "mlp", 4, 8 + 1 + 2, "")
    assert first.tensors == ("0.weight axis 0", "0.bias axis 0", "2.weight axis 1")
    assert last.frozen == "the output logits is made of them"
    assert inspect((model, normal(3, 8))).channels == ()


def test_a_file_has_no_channels_to_show(tmp_path):
    onnx_file.save(onnx_file.to_onnx(graph_of(nn.Linear(8, 4), normal(3, 8))), tmp_path)
    with pytest.raises(SourceError, match="channels are found in models"):
        inspect(tmp_path / "model.onnx", channels=True)


def test_any_onnx_file_can_be_looked_into(tmp_path):
    onnx_file.save(onnx_file.to_onnx(graph_of(nn.Linear(8, 4), normal(3, 8))), tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "other.onnx")
    [site] = inspect(tmp_path / "other.onnx").sites
    assert (site.name, site.op, site.shape, site.axis) == ("weight", "Gemm", (4, 8), 1)


@pytest.mark.parametrize(
    ("name", "error"), [("no.onnx", SourceError), ("words.onnx", BackendError), ("no/such", UserError)]
)
def test_what_is_not_there_or_no_model_is_said(tmp_path, name, error):
    (tmp_path / "words.onnx").write_text("these are words")
    with pytest.raises(error):
        inspect(str(tmp_path / name))


def test_an_inspection_is_json(resnet):
    loaded = json.loads(inspect(resnet[0]).to_json())
    assert list(loaded) == ["schema", "name", "origin", "sites", "parameters", "zeros", "costs", "channels", "blocks"]
