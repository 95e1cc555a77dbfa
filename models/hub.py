"""Hugging Face models: an id on the hub or a local folder in its layout; the task is found from the configuration."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from compressor.errors import SourceError
from compressor.models.quiet import quiet_transformers
from compressor.models.records import short
from compressor.models.task import Options, check_finite
from compressor.models.zoo import NAMES as ZOO_NAMES
from compressor.source import Source

# (auto class, its table of architectures, where the task is served); the first that holds the architecture is taken.
_TASKS = (
    ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "causal_lm:CausalLM"),
    ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "masked_lm:MaskedLM"),
    (
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "sequence_classification:SequenceClassification",
    ),
    (
        "AutoModelForImageClassification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "image_classification:ImageClassification",
    ),
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
LOCAL_OR_ZOO = f"a local folder (./my-model), or a model that ships with Compressor: {', '.join(ZOO_NAMES)}"


class HubSource:
    """Opens hub ids and local folders."""

    @staticmethod
    def accepts(name: Any) -> bool:
        return isinstance(name, str)

    @staticmethod
    def open(name: str, options: Options) -> Source:
        return open_pretrained(name, name, options)


def open_pretrained(where: str, name: str, options: Options) -> Source:
    """The source for a checkpoint. Raises SourceError when it cannot be found, read or trusted.

    where: a local folder or a hub id. name: what the user typed.
    """
    folder = Path(where).expanduser()
    if folder.exists():
        _check_folder(folder)
        where = str(folder)
    elif not _HUB_ID.fullmatch(where):
        raise SourceError(f"no model at {name}", found="no such folder, and no name on the hub", hint=LOCAL_OR_ZOO)
    with _in_our_words(name):
        task, model = _load(where, name, options)
    check_finite(name, model)
    module, _, cls = task.partition(":")
    source = getattr(import_module(f"compressor.models.{module}"), cls)(name, where, model.eval(), options)
    source.processor()  # refused now, not after hours
    return source


def _check_folder(folder: Path) -> None:
    """Refuse what transformers would misreport."""
    if folder.is_file():
        hint = "a folder in the Hugging Face layout, or FILE.py:FUNCTION that returns a module"
        raise SourceError(f"{folder} is not a folder", found="a file", hint=hint)
    names = sorted(path.name for path in folder.iterdir())
    if {"model.onnx", "report.json"} <= set(names):
        hint = f"compress inspect {folder}; compress export takes the model it was made of, and --recipe {folder}"
        raise SourceError(f"{folder} is an artifact already", found="model.onnx and report.json", hint=hint)
    if "config.json" not in names:
        found = ", ".join(names[:8]) or "an empty folder"
        raise SourceError(f"{folder} has no config.json", found=found, hint="a folder written by save_pretrained")
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{folder}/config.json is not JSON", found=short(error), hint="write it again") from error
    if not any(folder.glob("*.safetensors*")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        raise SourceError(
            f"{folder} has no weights that can be read safely",
            found=f"only {', '.join(pickles)}, which may run code when opened" if pickles else "no *.safetensors",
            hint="model.save_pretrained(FOLDER) in an environment you trust writes safetensors",
        )


# *** loading ***


def _load(where: str, name: str, options: Options) -> tuple[str, Any]:
    """(task, model in float32). Never unpickles; runs code of the checkpoint only when asked to."""
    import torch
    import transformers

    trust = {"trust_remote_code": options.remote_code}
    with quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(where, **trust)
        auto, task = _served(config, name, options)
        model, info = getattr(transformers, auto).from_pretrained(
            where,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **trust,
        )
    _check_complete(name, info)
    return task, model


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Where a weight is missing or has another shape, transformers has made up a random one."""
    made_up = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    made_up += [
        f"{key} is {tuple(saved)}, not {tuple(wanted)}" for key, saved, wanted in sorted(info["mismatched_keys"])
    ]
    if made_up:
        raise SourceError(
            f"the weights of {name} do not fit its config.json",
            found="; ".join(made_up[:2]) + (f"; and {len(made_up) - 2} more" if len(made_up) > 2 else ""),
            hint="the whole checkpoint, with the config.json that it was saved with",
        )


def _served(config: Any, name: str, options: Options) -> tuple[str, str]:
    """(auto class, task) for the architecture that the checkpoint was saved from."""
    from transformers.models.auto import modeling_auto

    if getattr(config, "quantization_config", None):
        hint = "the checkpoint before it was quantized"
        raise SourceError(f"{name} is quantized already", found="quantization_config in config.json", hint=hint)
    architectures = list(config.architectures or [])
    own = getattr(config, "auto_map", None) or {} if options.remote_code else {}
    for auto, table, task in () if getattr(config, "is_encoder_decoder", False) else _TASKS:
        known = getattr(modeling_auto, table).get(config.model_type, ())
        if auto in own or set(architectures) & ({known} if isinstance(known, str) else set(known)):
            return auto, task
    raise SourceError(
        f"{name} is for a task that is not served yet",
        found=f"the architecture {', '.join(architectures) or 'is not named in config.json'} ({config.model_type})",
        hint="causal or masked language models, sequence or image classification; or FILE.py:FUNCTION for any module",
    )


@contextmanager
def _in_our_words(name: str) -> Iterator[None]:
    """transformers raises many kinds of exceptions; each becomes a SourceError that says what to do."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        what, hint = _reason(name, error)
        raise SourceError(what, found=f"{type(error).__name__}: {short(error)}", hint=hint) from error


def _reason(name: str, error: Exception) -> tuple[str, str]:
    """(what failed, what to type), by what the exception says."""
    text = str(error).lower()
    if type(error).__name__ == "SafetensorError":
        return f"the weights of {name} are truncated or corrupt", "download or write them again"
    if isinstance(error, FileNotFoundError):
        return f"a file of {name} is missing", "download it again, all of it"
    if "trust_remote_code" in text:
        return f"{name} asks to run its own code", "read that code, then add --trust-remote-code"
    if "safetensors" in text:
        return f"{name} has no weights that can be read safely", "a checkpoint with whole safetensors files"
    if "does not recognize" in text or "unrecognized model" in text:
        return (
            f"transformers does not know this kind of model: {name}",
            "pip install -U transformers, or FILE.py:FUNCTION",
        )
    if any(word in text for word in ("connect", "offline", "resolve", "timed out")):
        return f"the model hub cannot be reached for {name!r}", LOCAL_OR_ZOO
    if "valid model identifier" in text or "not a valid" in text:
        return f"unknown model {name!r}", f"a hub id, {LOCAL_OR_ZOO}"
    return f"{name} cannot be loaded", "COMPRESS_DEBUG=1 for the traceback"
