"""Graph to ONNX and back to weight sites: the deployment-level graph every ONNX backend shares.

Each node that contracts a site's weight is stamped with the site's name before optimization; the stamp travels in the
written file, so the file itself tells which of its weights is which site, and on which axis the runtime reads it.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from weakref import WeakKeyDictionary

import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from compressor import onnx_rounding
from compressor.contractions import FLOAT_OPERATORS, SITE, through, weight_axes
from compressor.errors import BackendError
from compressor.graph import Graph

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
OPSET = 20
EXTERNAL_FROM = 1024  # bytes
_TRANSLATED: WeakKeyDictionary[ExportedProgram, ir.Model] = WeakKeyDictionary()


def to_onnx(graph: Graph) -> ir.Model:
    """The graph as ONNX, optimized, with names, symbols and stamps of our own and no trace of this machine."""
    names = {site.name for site in graph.sites}
    with _quiet_exporter():
        program = torch.onnx.ONNXProgram(_translated(graph).clone(), graph.program())
        if not graph.points:  # `unquantized.in_floats`
            onnx_rounding.drop(program.model)
        _stamp(program.model, names)
        program.optimize()
    model = program.model
    _name_weights(model, names)
    _name_symbols(model, graph)
    _forget_this_machine(model)
    return model


def _translated(graph: Graph) -> ir.Model:
    """The graph in ONNX's operators, not to be written to; its weights are the graph's own tensors.

    A graph is translated once for each structure that it takes: its dense twin, its compressed form and all that an
    observer looks at in between differ in their weights only.
    """
    program = graph.program()
    if program not in _TRANSLATED:
        _TRANSLATED[program] = _translate(graph)
    return _TRANSLATED[program]


def _translate(graph: Graph) -> ir.Model:
    with sdpa_kernel(SDPBackend.MATH):
        made = torch.onnx.export(
            graph.program(),
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamo=True,
            custom_translation_table=onnx_rounding.translations(),
        )
    assert made is not None
    return made.model


def save(model: ir.Model, folder: Path) -> None:
    """Write `model.onnx` and, beside it, every weight in `model.onnx.data`, whatever the model's size."""
    # Small tensors stay inside: runtimes read the shapes among them before they open the data file.
    ir.save(model, str(folder / MODEL_FILE), external_data=DATA_FILE, size_threshold_bytes=EXTERNAL_FROM)
    # Loaders that name both files expect both, though a model may hold no weight at all.
    (folder / DATA_FILE).touch()


def read(path: Path) -> ir.Model:
    """An ONNX file, weights left on disk until read. Raises BackendError when it cannot be parsed."""
    try:
        return ir.load(str(path))
    except Exception as error:
        raise BackendError(f"cannot read {path.name} as ONNX", found=str(error).splitlines()[0]) from error


def inputs(path: Path) -> dict[str, tuple[list[int | str], torch.dtype]]:
    """Each input's shape, with symbols for the axes that vary, and its dtype."""
    found: dict[str, tuple[list[int | str], torch.dtype]] = {}
    for value in read(path).graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [size if isinstance(size, int) else size.value or "" for size in value.shape]
        found[value.name or ""] = shape, ir.tensor_adapters.to_torch_dtype(value.dtype)
    return found


def width(path: Path) -> int | None:
    """The last axis of the first output; None where the file leaves it open."""
    shape = read(path).graph.outputs[0].shape
    size = shape[-1] if shape is not None and len(shape) else None
    return size if isinstance(size, int) else None


# *** on the way out ***


def _stamp(model: ir.Model, names: set[str]) -> None:
    """Write each site's name on the nodes that contract it, while weights still carry their own names."""
    for node in model.graph.all_nodes():
        if node.op_type not in FLOAT_OPERATORS:
            continue
        for position, axis in weight_axes(node):
            value, _ = through(node.inputs[position], axis)
            if value is not None and value.name in names:
                node.metadata_props[SITE] = value.name


def _name_weights(model: ir.Model, names: set[str]) -> None:
    """Give a folded copy of a site's weight (`val_680`) the site's name back, when no other weight has it."""
    for node in model.graph.all_nodes():
        if node.op_type == "Conv" and node.inputs[1] is not None and node.inputs[1].name in names:
            # Folding a BatchNorm makes a new Conv node around the old weight name.
            node.metadata_props[SITE] = node.inputs[1].name or ""
        site = node.metadata_props.get(SITE)
        for value in node.inputs:
            if site and value is not None and _is_copy(value) and site not in model.graph.initializers:
                value.name = site


def _is_copy(value: ir.Value) -> bool:
    """Whether the optimizer made this weight: it is called by a number."""
    is_weight = value.is_initializer() and value.const_value is not None and len(value.const_value.shape) >= 2
    return is_weight and (value.name or "").startswith("val_")


def _name_symbols(model: ir.Model, graph: Graph) -> None:
    """Call dynamic axes `batch` and `sequence` where torch says s27 and s70."""
    names: dict[str, str] = {}
    ports = {port.name: port for port in (*graph.inputs, *graph.outputs)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        port = ports.get(value.name or "")
        if port is None or value.shape is None:
            continue
        for axis, symbol in port.dynamic.items():
            names.setdefault(str(value.shape[axis]), symbol)
            value.shape[axis] = symbol
    for node in model.graph.all_nodes():
        for output in node.outputs:
            if output.shape is None:
                continue
            for axis, size in enumerate(output.shape):
                if not isinstance(size, int) and str(size) in names:
                    output.shape[axis] = names[str(size)]


def _forget_this_machine(model: ir.Model) -> None:
    """Drop stack traces and object reprs: they hold paths, and bytes that differ from run to run."""
    for node in model.graph.all_nodes():
        kept = {key: text for key, text in node.metadata_props.items() if key == SITE}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
        node.doc_string = None
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.doc_string = None


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """torch.onnx prints and warns about packages we do not use; its errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
