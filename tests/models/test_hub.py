"""Checkpoints in the hub's layout: what opens, and what is refused with the reason."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import SourceError
from compressor.models.hub import HubSource
from compressor.models.zoo_source import ZooSource
from compressor.source import Options, Source
from tests.models.architectures import CAUSAL, build, words_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint of one's own, to be broken."""
    return lambda task: shutil.copytree(checkpoints[task], tmp_path / task)


def refusal(folder: Path | str, **options) -> SourceError:
    with pytest.raises(SourceError) as caught:
        HubSource.open(str(folder), Options(**options))
    error = caught.value
    assert error.found, "an error says what was found"
    assert error.hint, "an error says what to type"
    return error


# *** the task is found ***


@pytest.mark.parametrize(
    ("folder", "task"),
    [
        ("causal", "text-generation"),
        ("masked", "fill-mask"),
        ("sequence", "text-classification"),
        ("image", "image-classification"),
    ],
)
def test_the_task_is_found_from_the_configuration(checkpoints, folder, task):
    source = HubSource.open(str(checkpoints[folder]), Options())
    assert all(hasattr(type(source), name) for name in vars(Source) if not name.startswith("_"))
    assert source.task == task
    assert source.origin.startswith(type(source.model).__name__)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-resnet"])
def test_a_zoo_name_opens_with_its_own_data_and_says_nothing_of_where_it_lies(name):
    assert ZooSource.accepts(name)
    source = ZooSource.open(name, Options(window=64))
    assert source.calibration(4)
    assert "/" not in source.origin
    assert "data/train" in source.calibration_description


def test_a_name_that_is_not_in_the_zoo_is_left_to_others():
    assert not ZooSource.accepts("tiny-gpt3")
    assert not ZooSource.accepts(3)


def test_weights_in_half_precision_are_opened_in_float32(copy):
    folder = copy("causal")
    save_file({key: x.half() for key, x in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS, {"format": "pt"})
    assert {x.dtype for x in HubSource.open(str(folder), Options()).model.parameters()} == {torch.float32}


def test_shards_are_read_and_a_missing_one_is_named(tmp_path):
    build(*CAUSAL["gpt2"]).save_pretrained(tmp_path, max_shard_size="10kB")
    words_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    HubSource.open(str(tmp_path), Options())
    shards[-1].unlink()
    assert shards[-1].name in refusal(tmp_path).found


def test_a_task_that_is_not_served_is_refused_with_its_architecture(copy):
    folder = copy("causal")
    change(folder / "config.json", architectures=["GPT2DoubleHeadsModel"])
    assert "GPT2DoubleHeadsModel (gpt2)" in refusal(folder).found


def test_an_encoder_decoder_is_refused_though_its_name_is_among_the_masked_models(copy):
    folder = copy("masked")
    change(folder / "config.json", architectures=["BartForConditionalGeneration"], model_type="bart")
    assert "not served" in refusal(folder).what


def test_a_quantized_checkpoint_is_refused(copy):
    folder = copy("causal")
    change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantized already" in refusal(folder).what


def change(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


# *** what is not there ***


def test_a_name_that_only_the_hub_could_know_is_refused_with_local_folders_and_the_zoo():
    error = refusal("some-org/some-model")
    assert "cannot be reached" in error.what
    assert "./my-model" in error.hint
    assert "tiny-gpt2" in error.hint


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/such/folder", "a/b/c", "C:\\models\\gpt2", "org/name:v2", "~/nowhere"]
)
def test_what_can_be_no_hub_id_is_not_asked_of_the_hub(name):
    error = refusal(name)
    assert error.what == f"no model at {name}"
    assert "tiny-gpt2" in error.hint


def test_a_file_is_refused_for_a_folder(copy):
    assert "is not a folder" in refusal(copy("causal") / WEIGHTS).what


def test_an_artifact_is_refused_for_a_checkpoint(copy):
    folder = copy("causal")
    for name in ("model.onnx", "report.json"):
        (folder / name).touch()
    error = refusal(folder)
    assert "is an artifact already" in error.what
    assert f"compress inspect {folder}" in error.hint


@pytest.mark.parametrize("others", [[], ["weights.txt"]])
def test_a_folder_without_configuration_is_refused_with_what_it_holds(tmp_path, others):
    for name in others:
        (tmp_path / name).touch()
    error = refusal(tmp_path)
    assert "no config.json" in error.what
    assert error.found == (others[0] if others else "an empty folder")


def test_a_configuration_that_is_not_json_is_refused(copy):
    folder = copy("causal")
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal(folder).what


def test_a_transformers_that_needs_torchvision_for_images_is_told_of_with_what_to_install(copy, monkeypatch):
    from transformers import AutoImageProcessor

    def needs_torchvision(*_: object, **__: object) -> None:
        raise ImportError("AutoImageProcessor requires the Torchvision library")

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", needs_torchvision)
    refused = refusal(copy("image"))
    assert "no image processor" in refused.what
    assert refused.hint.startswith("pip install torchvision")


@pytest.mark.parametrize(
    ("task", "files", "what"),
    [
        ("causal", ["tokenizer.json", "tokenizer_config.json"], "no tokenizer"),
        ("image", ["preprocessor_config.json", "processor_config.json"], "no image processor"),
    ],
)
def test_a_checkpoint_without_its_processor_is_refused_at_once(copy, task, files, what):
    folder = copy(task)
    for name in files:
        (folder / name).unlink(missing_ok=True)
    assert what in refusal(folder).what


# *** weights ***


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(copy, value):
    folder = copy("causal")
    weights = load_file(folder / WEIGHTS)
    weights["transformer.h.1.ln_2.bias"][3] = value
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    error = refusal(folder)
    assert "NaN or Inf" in error.what
    assert "transformer.h.1.ln_2.bias" in error.found


@pytest.mark.parametrize("keep", [0, 7, 200, 20_000])
def test_a_truncated_file_is_refused(copy, keep):
    folder = copy("causal")
    data = (folder / WEIGHTS).read_bytes()
    assert keep < len(data)
    (folder / WEIGHTS).write_bytes(data[:keep])
    assert "truncated or corrupt" in refusal(folder).what


def test_a_corrupt_header_is_refused(copy):
    folder = copy("causal")
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[8:40] = b"x" * 32
    (folder / WEIGHTS).write_bytes(data)
    assert "truncated or corrupt" in refusal(folder).what


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "none.safetensors"}, "metadata": {}}'])
def test_a_broken_index_is_refused(copy, index):
    folder = copy("causal")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(index)
    refusal(folder)


def test_a_missing_tensor_is_refused_where_transformers_would_make_one_up(copy):
    folder = copy("causal")
    weights = load_file(folder / WEIGHTS)
    del weights["transformer.h.0.mlp.c_fc.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    error = refusal(folder)
    assert "do not fit its config.json" in error.what
    assert "transformer.h.0.mlp.c_fc.weight" in error.found


def test_a_tensor_of_another_shape_is_refused(copy):
    folder = copy("causal")
    change(folder / "config.json", n_inner=32)
    assert "mlp.c_fc.bias is (64,), not (32,)" in refusal(folder).found


# *** nothing runs that was not asked for ***


class Dangerous:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_weights_that_would_need_unpickling_are_refused_and_not_opened(copy, tmp_path, name):
    folder, mark = copy("causal"), tmp_path / "was-run"
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Dangerous(mark)))
    error = refusal(folder, remote_code=True)
    assert name in error.found
    assert "save_pretrained" in error.hint
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists(), "the trap works"


def test_a_pickle_beside_safetensors_is_left_alone(copy, tmp_path):
    folder, mark = copy("causal"), tmp_path / "was-run"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Dangerous(mark)))
    HubSource.open(str(folder), Options())
    assert not mark.exists()


OWN_CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel
Path({mark!r}).touch()
class OwnConfig(GPT2Config):
    model_type = {kind!r}
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


def with_own_code(folder: Path, kind: str) -> Path:
    """The checkpoint, with code of its own that leaves a file behind; the file."""
    mark = folder.parent / "was-run"
    (folder / "own.py").write_text(OWN_CODE.format(mark=str(mark), kind=kind))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(folder / "config.json", auto_map=auto_map, model_type=kind, architectures=["OwnModel"])
    return mark


@pytest.fixture
def own_modules(tmp_path, monkeypatch) -> None:
    """transformers copies the code it runs; not into the user's own cache."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.usefixtures("own_modules")
def test_code_in_a_checkpoint_runs_only_when_asked_to(copy):
    folder = copy("causal")
    mark = with_own_code(folder, "own-kind")
    error = refusal(folder)
    assert "asks to run its own code" in error.what
    assert "--trust-remote-code" in error.hint
    assert not mark.exists()
    source = HubSource.open(str(folder), Options(remote_code=True))
    assert mark.exists()
    assert source.task == "text-generation"
    assert type(source.model).__name__ == "OwnModel"


@pytest.mark.usefixtures("own_modules")
def test_a_known_kind_of_model_opens_without_the_code_that_came_with_it(copy):
    folder = copy("causal")
    mark = with_own_code(folder, "gpt2")
    change(folder / "config.json", architectures=["GPT2LMHeadModel"])
    assert type(HubSource.open(str(folder), Options()).model).__name__ == "GPT2LMHeadModel"
    assert not mark.exists()
