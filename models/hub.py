"""Hugging Face models: an id on the hub or a local folder in its layout; the task is found from the configuration."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import SourceError
from compressor.models.task import Options
from compressor.models.zoo import NAMES as ZOO_NAMES
from compressor.source import Source

# auto class -> (task, where it is served). The first whose mapping holds the checkpoint's architecture is taken.
_TASKS = {
    "AutoModelForCausalLM": "compressor.models.causal_lm:CausalLM",
    "AutoModelForMaskedLM": "compressor.models.masked_lm:MaskedLM",
    "AutoModelForSequenceClassification": "compressor.models.sequence_classification:SequenceClassification",
    "AutoModelForImageClassification": "compressor.models.image_classification:ImageClassification",
}
_MAPPINGS = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


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
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = Path(where)
    if folder.exists():
        _check_folder(folder, options)
    config = _boundary(name, lambda: transformers.AutoConfig.from_pretrained(where, trust_remote_code=options.remote_code))
    auto = _auto_class(config, name)
    model = _boundary(
        name,
        lambda: getattr(transformers, auto).from_pretrained(
            where,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=options.remote_code,
        ),
    )
    _check_finite(model, name)
    module, _, cls = _TASKS[auto].partition(":")
    return getattr(import_module(module), cls)(name, where, model.eval(), options)


def _check_folder(folder: Path, options: Options) -> None:
    """Refuse what transformers would either misreport or read by running code."""
    if folder.is_file():
        raise SourceError(
            f"{folder} is a file", hint="a folder in the Hugging Face layout, or FILE.py:FUNCTION that returns a module"
        )
    if not (folder / "config.json").exists():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder"
        raise SourceError(f"{folder} has no config.json", found=found, hint="a folder written by save_pretrained")
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise SourceError(f"{folder / 'config.json'} is not JSON", found=str(error)) from None
    if "auto_map" in config and not options.remote_code:
        raise SourceError(
            f"{folder} asks to run its own code", found=f"auto_map in config.json: {config['auto_map']}",
            hint="read that code, then add --trust-remote-code",
        )
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not list(folder.glob("*.safetensors")):
        raise SourceError(
            f"{folder} has no weights that can be read safely",
            found=f"only {', '.join(pickles)}, which run code when opened" if pickles else "no *.safetensors",
            hint="model.save_pretrained(FOLDER) in an environment you trust writes safetensors",
        )


def _auto_class(config: Any, name: str) -> str:
    """The auto class whose mapping holds the architecture the checkpoint was saved with."""
    from transformers.models.auto import modeling_auto

    architectures = list(config.architectures or [])
    for auto, mapping in _MAPPINGS.items():
        classes = getattr(modeling_auto, mapping).get(config.model_type, ())
        known = {classes} if isinstance(classes, str) else set(classes)
        if known & set(architectures):
            return auto
    raise SourceError(
        f"{name} is for a task that is not served yet",
        found=f"architecture {', '.join(architectures) or 'not named in config.json'} ({config.model_type})",
        hint="causal or masked language models, sequence or image classification; or FILE.py:FUNCTION for any module",
    )


def _boundary(name: str, call: Callable[[], Any]) -> Any:
    """Call into transformers; its many exceptions become one SourceError that says what to do."""
    try:
        return call()
    except SourceError:
        raise
    except Exception as error:
        raise _translated(name, error) from error


def _translated(name: str, error: Exception) -> SourceError:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    zoo = ", ".join(ZOO_NAMES)
    if kind == "SafetensorError" or "safetensors" in text.lower() and "header" in text.lower():
        return SourceError(f"the weights of {name} are truncated or corrupt", found=text[:200], hint="download them again")
    if "trust_remote_code" in text:
        return SourceError(
            f"{name} asks to run its own code", found=text[:200], hint="read that code, then add --trust-remote-code"
        )
    if "pickle" in text.lower() or "torch.load" in text or "use_safetensors" in text or "model.safetensors" in text:
        return SourceError(
            f"{name} has no weights that can be read safely", found=text[:200], hint="a checkpoint with safetensors"
        )
    offline = any(word in text.lower() for word in ("couldn't connect", "connection", "offline", "resolve", "timed out"))
    if offline:
        return SourceError(
            f"the model hub cannot be reached for {name!r}",
            found=text[:160],
            hint=f"a local folder (./my-model), or a model that ships with Compressor: {zoo}",
        )
    if kind in ("OSError", "RepositoryNotFoundError", "HFValidationError", "EnvironmentError"):
        return SourceError(
            f"unknown model {name!r}",
            found=text[:160],
            hint=f"a local folder (./my-model), a hub id, or a model that ships with Compressor: {zoo}",
        )
    return SourceError(f"{name} cannot be loaded", found=f"{kind}: {text[:200]}", hint="COMPRESS_DEBUG=1 for the traceback")


def _check_finite(model: nn.Module, name: str) -> None:
    bad = [key for key, value in model.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise SourceError(
            f"{name} has weights that are NaN or Inf",
            found=f"{len(bad)} tensors, the first is {bad[0]}",
            hint="a checkpoint from before training diverged",
        )
