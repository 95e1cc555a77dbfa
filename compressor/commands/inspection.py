"""What is in a model or a written artifact: sites, shapes, zeros, and the pattern on the axis the runtime reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compressor import onnx_file
from compressor.channels.blocks import find_blocks
from compressor.channels.listing import GroupRecord, group_records
from compressor.contractions import Contraction, contractions
from compressor.driver import open_source
from compressor.errors import SourceError, UserError
from compressor.graph import Feeds, Graph
from compressor.proof.costs import Costs, costs_of
from compressor.proof.proving import observed_pattern
from compressor.proof.report import SiteRecord, as_json
from compressor.recipe import Recipe
from compressor.source import Source


@dataclass(frozen=True)
class Inspection:
    """Sites as they stand. zeros, parameters: over the sites alone for a file, over every parameter for a model.

    costs: of each workload of a model; of a file, none.
    channels: the groups of channels, where they were asked for; blocks: the residual blocks that could be left out.
    """

    name: str
    origin: str
    sites: tuple[SiteRecord, ...]
    parameters: int
    zeros: int
    costs: dict[str, Costs] = field(default_factory=dict)
    channels: tuple[GroupRecord, ...] = ()
    blocks: tuple[str, ...] = ()

    def to_json(self) -> str:
        return as_json(self)


def inspect(model: Any, *, channels: bool = False, trust_remote_code: bool = False) -> Inspection:
    """Look into an artifact's folder, an ONNX file, or any model that `export` takes. Raises SourceError.

    channels: whether to find what can be removed from it, which takes a model.
    """
    path = Path(model) if isinstance(model, str | Path) else None
    file = path / onnx_file.MODEL_FILE if path is not None and path.suffix != ".onnx" else path
    if file is None or not (file.suffix == ".onnx" and (file.is_file() or file == path)):
        return _of_model(str(model) if isinstance(model, Path) else model, channels, trust_remote_code)
    if channels:
        raise SourceError(
            "channels are found in models", found=f"the file {file}", hint="the model that it was made of"
        )
    return _of_file(file)


def _of_model(model: Any, channels: bool, trust_remote_code: bool) -> Inspection:
    recipe = Recipe(model=model if isinstance(model, str) else "", trust_remote_code=trust_remote_code)
    source = open_source(model, recipe)
    graph = source.lower()
    sites = tuple(
        SiteRecord(
            site.name, site.op, site.shape, site.axis, "left", _users(site.role, site.other_users),
            found=observed_pattern(site.weight.detach().movedim(site.axis, -1)),
            sparsity=(site.weight == 0).double().mean().item(),
        )
        for site in graph.sites
    )  # fmt: skip
    orphans = tuple(SiteRecord(one.name, "", one.shape, -1, "left", one.reason) for one in graph.orphans)
    weights = list(graph.module.parameters())
    zeros = sum(int((x == 0).sum()) for x in weights)
    found = costs_of(graph, _workloads(source, graph))
    size = sum(x.numel() for x in weights)
    groups = group_records(graph) if channels else ()
    blocks = tuple(block.name for block in find_blocks(graph)) if channels else ()
    return Inspection(source.name, source.origin, sites + orphans, size, zeros, found, groups, blocks)


def _workloads(source: Source, graph: Graph) -> Mapping[str, Feeds]:
    """What is timed; where that takes data that is not there, the example that the model was captured with."""
    try:
        return source.workloads()
    except UserError:
        return {"example": graph.example}


def _users(role: str, others: tuple[str, ...]) -> str:
    if others:
        return f"also read by {', '.join(others)}"
    return {"stem": "the stem: it reads the input", "head": "the head: it makes the first output"}.get(role, "")


def _of_file(path: Path) -> Inspection:
    if not path.is_file():
        raise SourceError(f"cannot find {path}", hint="an .onnx file, an artifact's folder, or a model's name")
    sites = tuple(_file_site(found) for found in contractions(onnx_file.read(path)))
    sizes = [torch.Size(site.shape).numel() for site in sites]
    zeros = sum(round((site.sparsity or 0.0) * size) for site, size in zip(sites, sizes, strict=True))
    return Inspection(path.name, f"{len(sites)} contractions of stored weights in {path}", sites, sum(sizes), zeros)


def _file_site(found: Contraction) -> SiteRecord:
    W = torch.from_numpy(found.along_last().copy())
    axis = found.axis % len(found.shape)
    return SiteRecord(
        found.site, found.op, found.shape, axis, "left", "",
        found=observed_pattern(W), sparsity=(W == 0).double().mean().item(),
        where=f"{found.op} axis {axis}", dtype=found.dtype,
    )  # fmt: skip
