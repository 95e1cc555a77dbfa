"""What is known by name: models, passes and backends, and what a missing one needs."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from compressor.flags import FLAGS, Flag
from compressor.proof.report import as_json
from compressor.registry import load, names


@dataclass(frozen=True)
class Names:
    """Name -> one line about it, by kind; options: pass -> flag -> what it does, and what stands without it."""

    models: dict[str, str]
    passes: dict[str, str]
    backends: dict[str, str]
    options: dict[str, dict[str, str]]

    def to_json(self) -> str:
        return as_json(self)


def everything() -> Names:
    return Names(_models(), _passes(), _backends(), {name: _options(name) for name in names("passes")})


def _models() -> dict[str, str]:
    shipped = load("sources", "zoo").describe()
    return shipped | {
        "a hub id or a folder": "causal and masked language models, sequence and image classification (transformers)",
        "package.module:function": "any nn.Module, with example inputs; FILE.py:function too",
    }


def _passes() -> dict[str, str]:
    return {name: (load("passes", name).__doc__ or "").strip().splitlines()[0] for name in names("passes")}


def _options(name: str) -> dict[str, str]:
    defaults = {one.name: one.default for one in dataclasses.fields(load("passes", name))}
    flags = [flag for flag in FLAGS if flag.owner == name]
    return {flag.spelled[0]: f"{flag.help}{_default(flag, defaults)}" for flag in flags}


def _default(flag: Flag, defaults: dict[str, Any]) -> str:
    value = defaults.get(flag.field, dataclasses.MISSING)
    if value is dataclasses.MISSING or value in ((), ""):
        return ""
    shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return f" [{', '.join(map(str, shown)) if isinstance(shown, tuple) else shown}]"


def _backends() -> dict[str, str]:
    lines = {}
    for name in names("backends"):
        backend = load("backends", name)()
        probe = backend.probe()
        works = ", ".join(filter(None, (probe.version, *backend.dtypes()))) + (f"; {probe.hint}" if probe.hint else "")
        lines[name] = works if probe.available else f"missing: {probe.hint}"
    return lines
