"""Modules of the user's own: from a function in a file or a package, and what is refused with the reason."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compressor.errors import DataError, SourceError
from compressor.models.python import Model, ModuleSource, PythonSource
from compressor.source import Options, Source
from tests.models.test_data import pictures

GOOD = """
import torch
from torch import nn
from compressor.models.python import Model

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 3, 2, 2)

def whole():
    module, example = build()
    return Model(module, example, labels=["cat", "dog"],
                 prepare=lambda image: torch.full((3, 2, 2), float(image.getpixel((0, 0))[0])))

def explain():
    raise ValueError("the weights are in another castle")

def calls():
    return explain()

def number():
    return 7

def module():
    return nn.Linear(2, 2)

answer = 42
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def opened(name: Any, data: Path | None = None) -> ModuleSource:
    assert PythonSource.accepts(name)
    return PythonSource.open(name, Options(str(data) if data else None))


def refusal(name: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        opened(name).lower()
    assert caught.value.found, "an error says what was found"
    assert caught.value.hint, "an error says what to type"
    return caught.value


class Flexible(nn.Module):
    """Calls a function with the module's one layer."""

    def __init__(self, function: Any, **arguments: Any):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function

    def forward(self, x: torch.Tensor, scale: Any = None) -> Any:
        return self.function(self.layer, x, scale)


def flexible(function: Any, *example: torch.Tensor) -> tuple[nn.Module, Any]:
    return Flexible(function), example or torch.ones(2, 3)


# *** names ***


@pytest.mark.parametrize("name", ["my_package.models:build", "models:build", "./a/b.py:build", "C:\\a\\b.py:build"])
def test_a_function_in_a_module_or_a_file_is_a_source(name):
    assert PythonSource.accepts(name)


@pytest.mark.parametrize(
    "name",
    ["gpt2", "org/name", "org/name:main", "C:models", "C:\\models", "./a:b", "a:b-c", ":build", "a:", "a.b", 7, None],
)
def test_what_is_no_function_is_left_to_others(name):
    assert not PythonSource.accepts(name)


def test_a_folder_that_is_called_so_is_left_to_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert not PythonSource.accepts("a:b")


# *** opening ***


def test_a_module_and_an_example_become_a_graph_for_any_batch(file):
    source = opened(f"{file}:build")
    assert all(hasattr(type(source), name) for name in vars(Source) if not name.startswith("_"))
    graph = source.lower()
    x = torch.randn(5, 3, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(graph.run({"input": x})["logits"], source.model.module(x))
    assert [site.name for site in graph.sites] == ["1.weight", "3.weight"]
    assert list(source.workloads()) == ["example"]
    assert source.generate(graph.run, 3) is None


def test_a_package_in_the_working_directory_is_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "small.py").write_text(GOOD)
    assert opened("my_models.small:build").origin == "Sequential from my_models.small:build"


def test_a_file_imports_what_lies_beside_it_and_hides_no_module_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    import json

    (tmp_path / "json.py").write_text("from my_helpers import *\n")
    (tmp_path / "my_helpers.py").write_text(GOOD)
    opened(f"{tmp_path / 'json.py'}:build")
    assert sys.modules["json"] is json


def test_from_python_a_pair_or_a_model_is_opened_as_it_is():
    pair = flexible(lambda layer, x, _: layer(x))
    assert opened(pair).name == "Flexible"
    assert opened(Model(*pair)).lower().sites[0].name == "layer.weight"


def test_examples_may_be_several_and_are_named_by_the_forward():
    both = flexible(lambda layer, x, scale: layer(x) * scale, torch.ones(1, 3), torch.tensor(2.0))
    source = opened(both)
    graph = source.lower()
    assert [str(port) for port in graph.inputs] == ["x(0: batch)", "scale()"]
    feeds = {"x": torch.randn(4, 3), "scale": torch.tensor(3.0)}
    with torch.no_grad():
        torch.testing.assert_close(graph.run(feeds)["logits"], both[0](**feeds))


def test_examples_by_name_need_no_order():
    module, _ = flexible(lambda layer, x, scale: layer(x) * scale)
    graph = opened(Model(module, {"scale": torch.ones(2, 1), "x": torch.ones(2, 3)})).lower()
    feeds = {"scale": torch.full((3, 1), 2.0), "x": torch.randn(3, 3)}
    with torch.no_grad():
        torch.testing.assert_close(graph.run(feeds)["logits"], module(**feeds))


@pytest.mark.parametrize(
    "function",
    [
        lambda layer, x, _: (layer(x), x + 1, None),
        lambda layer, x, _: {"out": layer(x), "other": x + 1},
        lambda layer, x, _: [layer(x), x + 1],
    ],
)
def test_several_outputs_are_kept_in_order(function):
    graph = opened(flexible(function)).lower()
    out = graph.run({"x": torch.zeros(3, 3)})
    assert list(out) == ["logits", "output_1"]
    assert out["output_1"].eq(1).all()


def test_another_dtype_leaves_the_module_in_its_own():
    pair = flexible(lambda layer, x, _: layer(x))
    assert opened(pair).lower("float16").sites[0].weight.dtype == torch.float16
    assert pair[0].layer.weight.dtype == torch.float32


def test_the_module_is_put_in_evaluation_mode(file):
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    graph = opened((module, torch.ones(2, 3))).lower()
    x = torch.ones(2, 3)
    torch.testing.assert_close(graph.run({"input": x})["logits"], module[0](x).detach())


# *** data ***


def test_images_are_prepared_by_the_model_and_scored_by_its_labels(file, tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / "d" / name, 10)
    source = opened(f"{file}:whole", tmp_path / "d")
    batches = source.calibration(100)
    assert [x.shape for x in batches[0].values()] == [(16, 3, 2, 2)]
    assert batches[0]["input"][3].eq(3).all()
    score = source.evaluation(100).score(
        lambda feeds: {"logits": torch.tensor([[1.0, 0.0]]).expand(len(feeds["input"]), 2)}
    )
    assert (score.value, score.n) == (50, 4)
    shown = source.showcase()
    assert shown.wanted == ("cat", "cat", "dog", "dog")
    answers = shown.answers(lambda feeds: {"logits": torch.eye(2)[[0, 1, 0, 1]]})
    assert [one.text for one in answers] == ["cat", "dog", "cat", "dog"]
    assert source.calibration_description.startswith("the first 80 % of each class of d")


def test_inputs_that_the_model_brings_calibrate_it():
    module, example = flexible(lambda layer, x, _: layer(x))
    source = opened(Model(module, example, calibration=[torch.zeros(3, 3), torch.ones(3, 3), torch.ones(3, 3)]))
    assert [len(batch["x"]) for batch in source.calibration(5)] == [3, 2]
    assert source.calibration_description == "the inputs that Flexible brings"
    assert source.evaluation(5) is None
    assert source.showcase() is None


def test_a_model_that_is_no_classifier_calibrates_and_is_not_scored(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    module = nn.Conv2d(3, 4, 1)
    source = opened(Model(module, torch.ones(1, 3, 2, 2), prepare=lambda image: torch.ones(3, 2, 2)), tmp_path)
    assert source.calibration(3)
    assert source.evaluation(3) is None


def test_data_without_a_way_to_prepare_it_is_refused(file, tmp_path):
    with pytest.raises(DataError, match="does not say how an image becomes its input"):
        opened(f"{file}:build", pictures(tmp_path / "d")).calibration(1)


def test_calibration_without_data_is_refused_with_what_would_do(file):
    with pytest.raises(DataError, match="brings no calibration data") as caught:
        opened(f"{file}:build").calibration(1)
    assert "calibration=[...]" in caught.value.hint


def test_a_prepare_that_fails_is_refused_with_its_line(tmp_path):
    module, example = flexible(lambda layer, x, _: layer(x))
    source = opened(Model(module, example, prepare=lambda image: image.no_such_method()), pictures(tmp_path / "d"))
    with pytest.raises(SourceError, match="`prepare` of Flexible fails") as caught:
        source.calibration(1)
    assert "no_such_method" in caught.value.found


# *** refusals ***


def test_a_missing_function_is_refused_with_those_that_are_there(file):
    error = refusal(f"{file}:biuld")
    assert "has no function 'biuld'" in error.what
    assert "build" in error.found
    assert "has no function 'answer'" in refusal(f"{file}:answer").what


def test_a_missing_file_or_module_is_refused(tmp_path):
    assert "no file" in refusal(f"{tmp_path}/none.py:build").what
    assert "no module 'no_such_package.models'" in refusal("no_such_package.models:build").what
    assert "no module 'json.nothing'" in refusal("json.nothing:build").what


def test_what_the_function_raises_survives_with_the_users_own_lines(file):
    error = refusal(f"{file}:calls")
    assert error.what == f"{file}:calls raises an exception"
    assert error.found.startswith("ValueError: the weights are in another castle")
    assert "mine.py:18 in calls: return explain()" in error.found
    assert "mine.py:15 in explain: raise ValueError" in error.found
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.parametrize("code", ["import no_such_module_anywhere", "def build(:", "1 / 0"])
def test_a_file_that_cannot_be_imported_is_refused_with_its_reason(tmp_path, code):
    (tmp_path / "broken.py").write_text(code)
    error = refusal(f"{tmp_path}/broken.py:build")
    assert "cannot be imported" in error.what
    assert any(word in error.found for word in ("no_such_module_anywhere", "SyntaxError", "ZeroDivisionError"))


def test_a_module_that_lacks_something_itself_is_not_called_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "lacking.py").write_text("import no_such_module_anywhere")
    error = refusal("lacking:build")
    assert error.what == "lacking cannot be imported"
    assert "no_such_module_anywhere" in error.found


@pytest.mark.parametrize(("function", "found"), [("number", "a int"), ("module", "a module without example inputs")])
def test_what_is_no_module_with_an_example_is_refused(file, function, found):
    error = refusal(f"{file}:{function}")
    assert error.found == found
    assert "return module, example_tensor" in error.hint


@pytest.mark.parametrize("made", [(1, 2), (nn.Linear(2, 2), torch.ones(1, 2), 3), (torch.ones(1), nn.Linear(2, 2))])
def test_a_pair_that_is_none_is_refused(made):
    assert "does not return a module and example inputs" in refusal(made).what


@pytest.mark.parametrize(("example", "found"), [([1.0], "x is a float"), ("text", "x is a str"), ((), "no inputs")])
def test_examples_that_are_no_tensors_are_refused_by_name(example, found):
    module, _ = flexible(lambda layer, x, _: layer(x))
    assert refusal(Model(module, example)).found == found


def test_an_example_that_does_not_fit_is_refused_with_the_line():
    error = refusal(flexible(lambda layer, x, _: layer(x), torch.ones(2, 5)))
    assert "the forward of Flexible fails on its example" in error.what
    assert "test_python.py" in error.found


@pytest.mark.parametrize("function", [lambda layer, x, _: layer(x).sum(), lambda layer, x, _: "text", lambda *_: None])
def test_outputs_that_are_no_batch_of_tensors_are_refused(function):
    assert "does not return tensors" in refusal(flexible(function)).what


def test_a_forward_that_cannot_be_captured_is_refused_with_the_reason():
    error = refusal(flexible(lambda layer, x, _: layer(x) if x.sum() > 0 else x))
    assert "cannot capture Flexible" in error.what
    assert "data-dependent" in error.found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    module, example = flexible(lambda layer, x, _: layer(x))
    module.layer.bias.data[1] = value
    assert "layer.bias" in refusal((module, example)).found


def test_a_mask_of_minus_infinity_is_no_broken_weight():
    module, example = flexible(lambda layer, x, _: layer(x))
    module.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    opened((module, example))
    module.mask[0, 0] = float("nan")
    assert "mask" in refusal((module, example)).found


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_in_another_precision_is_told_what_to_type(kind):
    model = nn.Linear(4, 2).to(kind), torch.zeros(1, 4, dtype=kind)
    with pytest.raises(SourceError, match="not in float32") as caught:
        PythonSource.open(model, Options())
    assert caught.value.found == f"weight is {str(kind).removeprefix('torch.')}"
    assert "module.float()" in caught.value.hint
