"""One run from a model to a checked artifact: what is in the folder, and each way a run may end."""

import dataclasses
import errno
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_ir import ExternalTensor
from torch import Tensor, nn

import compressor
from compressor import driver, onnx_file, run
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.contractions import contractions
from compressor.driver import default_output, export
from compressor.errors import BackendError, DataError, InternalError, OutputError, RecipeError, SourceError, UserError
from compressor.models.python import ModuleSource
from compressor.models.task import perplexity
from compressor.passes.fit import Fit
from compressor.passes.sparsify import Sparsify
from compressor.pipeline import parse_pass
from compressor.proof.proving import promises
from compressor.recipe import Recipe
from compressor.source import Evaluation, Options, Probe

PRUNE = "export | sparsify{pattern=2:4,method=magnitude,refit=0}"

pytestmark = pytest.mark.usefixtures("quick")


def mlp() -> tuple[nn.Module, Tensor]:
    """Three layers; the middle one alone is pruned by 2:4, for the head is left and the first reads 6 inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    return model, torch.randn(3, 32)


def met(report) -> dict[str, bool]:
    return {promise.name: promise.met for promise in report.promises}


PATTERN = "the written file holds the pattern"
PARITY = "the artifact computes what torch computes"
COVERAGE = "every named site is changed"
BUDGET = "the score stays within the budget"


# *** a run that ends well ***


def test_a_trained_model_passes_and_its_folder_is_complete(resnet):
    folder, report = resnet
    assert report
    assert met(report) == {COVERAGE: True, PATTERN: True, PARITY: True, BUDGET: True}
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "export.json", "model.onnx", "model.onnx.data", "preprocessor_config.json", "recipe.yaml",
        "report.html", "report.json",
    ]  # fmt: skip


def test_its_report_says_what_was_done(resnet):
    folder, report = resnet
    assert json.loads((folder / "report.json").read_text()) == json.loads(report.to_json())
    assert (report.model, report.output, report.dtype) == ("tiny-resnet", "resnet", "float32")
    assert report.pipeline == "sparsify{pattern=2:4,samples=16}"
    assert re.match(r"16 samples from .*train\.parquet", report.calibration)
    assert re.match(r"64 images from .*test\.parquet", report.scores.samples)
    assert [row.workload for row in report.latency] == ["batch of 1", "batch of 8"]
    changed = [site for site in report.sites if site.status == "changed"]
    assert len(changed) == 14
    assert all((site.found, site.sparsity, site.where) == ("2:4", 0.5, "Conv axis 1") for site in changed)
    assert all(0 < site.relative_error < 0.2 for site in changed)


def test_dense_compressed_and_artifact_are_scored_on_the_same_samples(resnet):
    scores = resnet[1].scores
    assert scores.dense.n == scores.compressed.n == scores.artifact.n == 64
    assert scores.compressed.per_sample == scores.artifact.per_sample
    assert scores.drop == pytest.approx(scores.dense.value - scores.artifact.value)


def test_sizes_count_the_weights_and_the_zeros(resnet):
    _, report = resnet
    sizes = report.sizes
    assert sizes.parameters == 177_178
    pruned = sum(np.prod(site.shape) for site in report.sites if site.status == "changed")
    assert sizes.dense_nonzero - sizes.nonzero == pruned // 2
    assert sizes.artifact_bytes == pytest.approx(sizes.dense_bytes, rel=0.01)


@pytest.mark.slow
def test_its_recipe_reads_back_and_makes_the_same_bytes_again(resnet, tmp_path):
    folder, report = resnet
    recipe = Recipe.read(folder)
    assert str(recipe) == report.recipe
    again = export(None, recipe, output=tmp_path / "again")
    for name in ("model.onnx", "model.onnx.data", "recipe.yaml", "config.json", "export.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert again.scores.artifact.per_sample == report.scores.artifact.per_sample


def test_no_written_file_names_this_machine(resnet):
    folder, _ = resnet
    for path in folder.iterdir():
        content = path.read_bytes()
        for private in (str(Path.home()), str(Path.cwd()), str(folder.parent), "site-packages", "/tmp/"):
            assert private.encode() not in content, f"{path.name} holds {private}"


def test_a_module_and_an_example_are_enough(tmp_path):
    report = export(mlp(), PRUNE, output=tmp_path / "out")
    assert report
    assert (report.model, report.unscored) == ("Sequential", "the data has no labels, so nothing was scored")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.onnx", "model.onnx.data", "recipe.yaml", "report.html", "report.json",
    ]  # fmt: skip


def test_a_model_with_calibration_inputs_needs_no_data(tmp_path):
    module, x = mlp()
    model = compressor.Model(module, x, calibration=[torch.randn(8, 32) for _ in range(4)])
    report = export(model, "export | sparsify{pattern=2:4,samples=2}", output=tmp_path / "out")
    assert report
    assert re.fullmatch(r"\d+ samples from .*inputs that Sequential brings", report.calibration)


def test_any_source_is_taken_as_it_is(tmp_path):
    module, x = mlp()
    assert export(ModuleSource("mine", compressor.Model(module, x), Options()), PRUNE, output=tmp_path / "out")


def test_without_passes_the_model_is_built_as_it_is(tmp_path):
    report = export(mlp(), output=tmp_path / "out")
    assert report
    assert (report.pipeline, report.latency, report.gain) == ("", (), "")
    assert met(report) == {COVERAGE: True, PARITY: True}
    assert report.sizes.dense_bytes == report.sizes.artifact_bytes


def test_a_recipe_may_be_given_as_an_object(tmp_path):
    recipe = Recipe(passes=(parse_pass("sparsify{pattern=0.5,method=magnitude,refit=0}"),))
    assert export(mlp(), recipe, output=tmp_path / "out")


def test_the_graph_is_dumped_before_and_after(tmp_path):
    export(mlp(), PRUNE, output=tmp_path / "out", dump_graph=tmp_path / "dump")
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == [
        "00-input.txt", "01-sparsify.diff", "01-sparsify.txt",
    ]  # fmt: skip


def test_half_precision_is_built_from_the_same_pruned_weights(tmp_path):
    report = export(
        mlp(), "export{dtype=float16} | sparsify{pattern=2:4,method=magnitude,refit=0}", output=tmp_path / "o"
    )
    assert report
    assert report.sizes.artifact_bytes < 20_000
    assert {site.found for site in report.sites if site.status == "changed"} == {"2:4"}


@pytest.mark.parametrize(
    ("model", "backend", "expected"),
    [
        ("tiny-gpt2", "ort", "tiny-gpt2-onnxruntime"),
        ("owner/name", "ort", "name-onnxruntime"),
        ("./some/folder/", "ort", "folder-onnxruntime"),
        ("package.module:make", "ort", "make-onnxruntime"),
        ("file.py:make", "ort", "make-onnxruntime"),
        ("", "ort", "model-onnxruntime"),
    ],
)
def test_the_folder_is_named_after_the_model_and_the_backend(model, backend, expected):
    assert default_output(Recipe(model=model, backend=backend)) == Path(expected)


# *** a file that breaks its word ***


def tampering(monkeypatch, change) -> None:
    """Have each artifact's file changed after it was built; the dense twin is left alone."""
    build = OnnxRuntime.build

    def build_and_tamper(self, graph, folder):
        build(self, graph, folder)
        if folder.name == run.DENSE_TWIN:
            return
        # The head is small, and stays inside model.onnx.
        for found in list(contractions(onnx_file.read(folder / "model.onnx")))[:2]:
            assert isinstance(found.weight, ExternalTensor)
            W = change(found.weight.numpy().copy())
            with open(folder / "model.onnx.data", "r+b") as data:
                data.seek(found.weight.offset or 0)
                data.write(np.ascontiguousarray(W).tobytes())

    monkeypatch.setattr(OnnxRuntime, "build", build_and_tamper)


def with_one_zero_filled(W: np.ndarray) -> np.ndarray:
    zeros = np.flatnonzero(W == 0)
    W.flat[zeros[:1]] = 1e-7
    return W


def test_one_zero_that_is_none_in_the_file_fails_the_run_though_the_outputs_agree(tmp_path, monkeypatch):
    tampering(monkeypatch, with_one_zero_filled)
    report = export(mlp(), PRUNE, output=tmp_path / "out")
    assert not report
    assert met(report) == {COVERAGE: True, PATTERN: False, PARITY: True}
    broken = [site for site in report.sites if site.holds is False]
    assert [(site.name, site.found) for site in broken] == [("0.weight", "3:4"), ("2.weight", "3:4")]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["passed"] is False


def test_the_pattern_on_the_wrong_axis_fails_the_run(tmp_path, monkeypatch):
    tampering(monkeypatch, lambda W: (W.T if W.shape[0] == W.shape[1] else W).copy())
    report = export(mlp(), PRUNE, output=tmp_path / "out")
    assert met(report)[PATTERN] is False
    assert met(report)[PARITY] is False


def test_a_site_that_is_missing_in_the_file_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "stored", lambda self, folder: {})
    report = export(mlp(), PRUNE, output=tmp_path / "out")
    assert met(report) == {COVERAGE: True, PATTERN: False, PARITY: True}
    assert "not found in the file" in report.promises[1].detail


def test_a_runtime_that_computes_something_else_fails_the_run(tmp_path, monkeypatch):
    opened = OnnxRuntime.open

    def perturbed(self, folder, threads=0):
        run = opened(self, folder, threads)
        return lambda feeds: {name: x * 1.001 for name, x in run(feeds).items()}

    monkeypatch.setattr(OnnxRuntime, "open", perturbed)
    assert met(export(mlp(), PRUNE, output=tmp_path / "out")) == {COVERAGE: True, PATTERN: True, PARITY: False}


def test_a_site_that_was_named_and_refused_fails_the_run_unless_allowed(tmp_path):
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 2))
    report = export((model, torch.randn(2, 8)), PRUNE, output=tmp_path / "out")
    assert met(report) == {COVERAGE: False, PATTERN: True, PARITY: True}
    assert all(one.met for one in promises(report.sites, None, report.parity, allow_partial=True))


class Scored(ModuleSource):
    """A source whose dense, compressed and written model score what it is told."""

    def __init__(self, *losses: float):
        super().__init__("scored", compressor.Model(*mlp()), Options())
        self.losses = iter(losses)

    def evaluation(self, n: int) -> Evaluation:
        return Evaluation(f"{n} windows", lambda run: perplexity([next(self.losses)] * n, "windows"))


@pytest.mark.parametrize(("losses", "kept"), [((4.0, 4.0, 4.009), True), ((4.0, 4.0, 4.011), False), ((4, 9, 3), True)])
def test_the_artifact_s_own_score_decides_about_the_budget(tmp_path, losses, kept):
    report = export(Scored(*losses), PRUNE.replace("export", "export{max_drop=1,samples=3}"), output=tmp_path / "out")
    assert met(report) == {COVERAGE: True, PATTERN: True, PARITY: True, BUDGET: kept}
    assert report.scores.drop == pytest.approx(100 * (math.exp(losses[2] - losses[0]) - 1))
    assert report.scores.samples == "3 windows"


def test_without_a_budget_any_score_will_do_but_one_that_is_no_number(tmp_path):
    assert export(Scored(4.0, 4.0, 9.0), PRUNE, output=tmp_path / "a")
    assert met(export(Scored(4.0, math.nan, math.nan), PRUNE, output=tmp_path / "b"))["the score is a number"] is False


# *** recovery ***

RECOVER = PRUNE + " | recover{method=finetune,steps=6,batch=8,checks=3,patience=0}"


def learner() -> compressor.Model:
    x = torch.randn(60, 32, generator=torch.Generator().manual_seed(0))
    return compressor.Model(*mlp(), training=[(x, x[:, :4].argmax(1))])


def test_recovery_is_told_in_the_report_and_the_file_holds_the_pattern(tmp_path):
    report = export(learner(), RECOVER, output=tmp_path / "out")
    assert met(report) == {COVERAGE: True, PATTERN: True, PARITY: True}
    [note] = report.notes
    assert note.startswith("recover: learned from labels for 6 steps of 8")
    assert note.endswith("60 samples that Sequential brings")
    assert [site.asked for site in report.sites] == ["2:4", "2:4", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_was_killed_while_it_learned_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    export(learner(), RECOVER, output=tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(OnnxRuntime, "stored", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export(learner(), RECOVER, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.kept", "whole"]
    monkeypatch.setattr(Fit, "_descend", lambda *_: pytest.fail("the checkpoint was not gone on from"))
    export(learner(), RECOVER, output=tmp_path / "out")
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_finetuning_without_labels_is_refused_before_the_model_is_captured(tmp_path, monkeypatch):
    monkeypatch.setattr(ModuleSource, "lower", lambda *_: pytest.fail("captured before the data was looked at"))
    model = compressor.Model(*mlp(), calibration=[torch.randn(8, 32)])
    with pytest.raises(DataError, match="finetune needs labels to learn from") as caught:
        export(model, RECOVER, output=tmp_path / "out")
    assert caught.value.found == "none in 8 samples that Sequential brings"
    assert "--recover distill" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


# *** a run that ends early, and leaves nothing ***


@pytest.mark.parametrize(
    ("model", "recipe", "error", "what"),
    [
        (None, None, RecipeError, "no model was named"),
        (3.14, None, RecipeError, "a model cannot be a float"),
        (mlp(), "export{max_drop=1}", RecipeError, "max_drop needs something to score"),
        (mlp(), PRUNE.replace("2:4", "3:7"), RecipeError, "no site can take 3:7"),
        (mlp(), PRUNE.replace("}", ",targets=[nope]}"), RecipeError, "no weight is named 'nope'"),
        (mlp(), "export{backend=onnxruntim}", RecipeError, "unknown backend 'onnxruntim'"),
        (mlp(), "export | sparsify{pattern=2:4}", DataError, "brings no calibration data"),
        ("no/such.py:function", None, SourceError, "no/such.py"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(tmp_path, model, recipe, error, what):
    with pytest.raises(error, match=what):
        export(model, recipe, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["export | sparsify{pattern=2:4}", "export{max_drop=1}"])
def test_missing_data_is_said_before_the_model_is_captured(tmp_path, monkeypatch, recipe):
    monkeypatch.setattr(ModuleSource, "lower", lambda *args: pytest.fail("the model was captured"))
    with pytest.raises(UserError, match=r"brings no calibration data|needs something to score"):
        export(mlp(), recipe, output=tmp_path / "out")


def test_a_backend_that_is_not_installed_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "probe", lambda self: Probe(False, hint="pip install onnxruntime"))
    with pytest.raises(BackendError, match="cannot work here") as refused:
        export(mlp(), output=tmp_path / "out")
    assert refused.value.hint == "pip install onnxruntime"


def test_a_backend_without_the_precision_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "dtypes", lambda self: ("float32",))
    with pytest.raises(BackendError, match="does not build float16"):
        export(mlp(), "export{dtype=float16}", output=tmp_path / "out")


def test_a_weight_beyond_half_precision_is_refused(tmp_path):
    model, x = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = 1e6  # type: ignore[index]
    with pytest.raises(BackendError, match=r"2\.weight does not fit in float16"):
        export((model, x), "export{dtype=float16}", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(OnnxRuntime, "build", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        export(mlp(), PRUNE, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ((OnnxRuntime, "build"), RuntimeError),
        ((OnnxRuntime, "stored"), KeyboardInterrupt),
        ((Sparsify, "run"), InternalError),
    ],
)
def test_whatever_happens_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch, stage, error):
    def fail(*args: object, **options: object) -> None:
        raise error("midway")

    monkeypatch.setattr(*stage, fail)
    with pytest.raises(error):
        export(mlp(), PRUNE, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_breaks_its_word_stops_the_run(tmp_path, monkeypatch):
    run = Sparsify.run

    def careless(self, graph, context):
        outcome = run(self, graph, context)
        with torch.no_grad():
            graph.sites[0].weight.fill_(1.0)
        return outcome

    monkeypatch.setattr(Sparsify, "run", careless)
    with pytest.raises(InternalError, match="break 2:4"):
        export(mlp(), PRUNE, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def existing(tmp_path) -> Path:
    """An artifact of an earlier run."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    (folder / "model.onnx").write_text("the old one")
    return folder


def test_an_artifact_is_not_overwritten_and_no_work_is_done_before_that_is_said(existing, monkeypatch):
    monkeypatch.setattr(driver, "open_source", lambda *args: pytest.fail("work was done"))
    with pytest.raises(OutputError, match="already exists"):
        export(mlp(), output=existing)
    assert (existing / "model.onnx").read_text() == "the old one"


def test_an_artifact_is_overwritten_when_asked(existing):
    report = export(mlp(), output=existing, overwrite=True)
    assert (existing / "report.json").read_text() == report.to_json()
    assert [path.name for path in existing.parent.iterdir()] == ["out"]


def test_a_foreign_folder_is_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not an artifact") as refused:
        export(mlp(), output=tmp_path / "out", overwrite=True)
    assert refused.value.found == "thesis.txt"
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_run_that_fails_leaves_the_artifact_it_was_to_replace(existing, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "stored", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(mlp(), output=existing, overwrite=True)
    assert [path.name for path in existing.parent.iterdir()] == ["out"]
    assert (existing / "model.onnx").read_text() == "the old one"


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / ".out.partial-999999"  # beyond the largest process number
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    export(mlp(), output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# *** slow ***


@pytest.mark.slow
def test_the_demo_passes_and_generates_the_same_tokens(tmp_path):
    report = export("tiny-gpt2", "export{max_drop=100} | sparsify{pattern=2:4}", output=tmp_path / "out")
    assert report
    assert report.parity.same_tokens
    assert dataclasses.asdict(report)["task"] == "text-generation"
    for path in (tmp_path / "out").iterdir():
        assert str(Path.cwd()).encode() not in path.read_bytes(), path.name
