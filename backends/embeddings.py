"""Weights that are looked up, as codes in an ONNX file: Gather of codes and of scales, Cast, Mul."""

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compressor.backends.codes import Coded, constant, look_up
from compressor.contractions import SCALE
from compressor.graph import Graph
from compressor.source import Stored

LOOKUP = "Gather"


def quantize(model: ir.Model, graph: Graph, *, whole: bool = False) -> None:
    """Store each table of the graph that lies on a grid as its codes (n, d) and scales (n,), in place.

    whole: whether rows are looked up in floats, made of all codes, which TensorRT asks for.
    """
    known = model.graph.initializers
    for table in graph.orphans:
        if table.name not in graph.grids or table.name not in known:
            continue
        old = known[table.name]
        made = Coded(graph.codes(table.name)[0].numpy(), graph.grids[table.name].scale[0].float().numpy())
        made = made.in_dtype((old.dtype or ir.DataType.FLOAT).numpy())
        codes = constant(model, f"{table.name}.codes", made.codes)
        scale = constant(model, f"{table.name}{SCALE}", made.scale[:, 0])
        for node, _ in list(old.uses()):
            look_up(model, node, codes, scale, whole=whole)
        RemoveUnusedNodesPass()(model)
        codes.name = table.name


def stored(model: ir.Model) -> dict[str, Stored]:
    """Every weight that is looked up as codes, by name."""
    known, found = model.graph.initializers, {}
    for node in model.graph.all_nodes():
        value = _behind(node.inputs[0]) if node.op_type == LOOKUP else None
        scale = known.get(f"{value.name}{SCALE}") if value is not None else None
        if value is None or scale is None or value.const_value is None or scale.const_value is None:
            continue
        codes = torch.from_numpy(value.const_value.numpy().copy())
        scales = torch.from_numpy(scale.const_value.numpy().copy())
        found[value.name or ""] = Stored(codes, f"{LOOKUP} axis 0", str(codes.dtype).removeprefix("torch."), scales)
    return found


def _behind(value: ir.Value | None) -> ir.Value | None:
    """What a DequantizeLinear reads."""
    maker = value.producer() if value is not None else None
    return maker.inputs[0] if maker is not None and maker.op_type == "DequantizeLinear" else value
