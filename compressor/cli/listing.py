"""What is known by name: models, passes and backends, and what a missing one needs."""

from compressor.registry import load, names


def everything() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line about it."""
    return {"models": _models(), "passes": _passes(), "backends": _backends()}


def _models() -> dict[str, str]:
    shipped = load("sources", "zoo").describe()
    return shipped | {
        "a hub id or a folder": "causal and masked language models, sequence and image classification (transformers)",
        "package.module:function": "any nn.Module, with example inputs; FILE.py:function too",
    }


def _passes() -> dict[str, str]:
    return {name: (load("passes", name).__doc__ or "").strip().splitlines()[0] for name in names("passes")}


def _backends() -> dict[str, str]:
    lines = {}
    for name in names("backends"):
        backend = load("backends", name)()
        probe = backend.probe()
        works = ", ".join(filter(None, (probe.version, *backend.dtypes()))) + (f"; {probe.hint}" if probe.hint else "")
        lines[name] = works if probe.available else f"missing: {probe.hint}"
    return lines
