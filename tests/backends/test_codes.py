"""Codes in the type of a file: scales that are normal numbers there, and rows that the exporter has multiplied."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from compressor.backends.codes import Coded, normal
from compressor.backends.onnxruntime import OnnxRuntime
from compressor.backends.tensorrt import TensorRT
from compressor.contractions import contractions
from compressor.errors import InternalError
from compressor.onnx_file import MODEL_FILE, read
from compressor.pipeline import Context, parse_pass, run_pipeline
from compressor.proof.parity import difference
from tests.backends.graphs import model
from tests.compressor.tiny import graph_of

LEAST = 2.0**-14  # float16's least normal number
CODES = np.array([[127, -64, 0, 1], [-127, 0, 3, 90]], np.int8)


def test_scales_in_half_precision_keep_the_codes_of_every_normal_scale():
    scale = np.geomspace(LEAST, 500, 64, dtype=np.float32)[:, None]
    codes = np.tile(np.arange(-127, 128, dtype=np.int8), (64, 1))
    made = Coded(codes, scale).in_dtype(np.dtype(np.float16))
    assert made.scale.dtype == np.float16
    assert (made.codes == codes).all()
    assert np.abs(made.scale.astype(np.float32) / scale - 1).max() <= 2**-11


def test_a_scale_below_the_normal_numbers_is_raised_and_its_row_rounded_anew():
    made = Coded(CODES, np.array([[LEAST / 4], [1e-9]], np.float32)).in_dtype(np.dtype(np.float16))
    assert made.scale.ravel().tolist() == [LEAST, LEAST]
    assert made.codes.tolist() == [[32, -16, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scales_of_a_type_are_never_zero_nor_subnormal(dtype):
    found = normal(np.array([0.0, 1e-44, 1e-8, 3.0], np.float32), np.dtype(dtype))
    assert found.dtype == dtype
    assert (found >= np.finfo(dtype).smallest_normal).all()
    assert found[-1] == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_that_the_file_has_multiplied_keep_their_codes_and_a_row_made_zero_has_none(dtype):
    coded = Coded(CODES, np.array([[0.01], [0.02]], np.float32))
    factor = np.array([[-3.0], [0.0]], np.float32)
    W = (CODES * coded.scale * factor).astype(dtype)
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    [found] = contractions(model("Y = MatMul(X, W)", x=f"{kind}[b,4]", y=f"{kind}[b,m]", W=W.T.copy()))
    made = coded.as_in(found)
    assert made.codes.tolist() == [(-CODES[0]).tolist(), [0, 0, 0, 0]]
    assert made.scale.ravel() == pytest.approx([0.03, 1], rel=1e-3)
    found.value.const_value = ir.tensor((W + np.array([[0, 0.02, 0, 0], [0, 0, 0, 0]])).astype(dtype).T.copy())
    with pytest.raises(InternalError, match="has left its grid on its way into the file"):
        coded.as_in(found)


class Normalized(nn.Module):
    """A convolution whose normalization multiplies channels by much, little and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.norm.weight.data = torch.tensor([0.0, 1e-9, 1e-5, 1e-3, -0.5, 1.0, 20.0, -300.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_channels_that_a_normalization_makes_tiny_stay_tiny(dtype, tmp_path):
    x = torch.randn(4, 8, 6, 6)
    graph, backend = graph_of(Normalized(), x), TensorRT()
    context = Context(lambda n: [{"x0": torch.randn(4, 8, 6, 6)} for _ in range(3)], kernels=backend.quantizes)
    run_pipeline(graph, [parse_pass("quantize{kind=int8,sweeps=0}")], context)
    kind = getattr(torch, dtype)
    made = graph_of(Normalized().to(kind), x.to(kind))
    if dtype == "float32":
        made = graph
    else:
        graph.repeat_on(made)
    backend.build(made, tmp_path)
    [found] = backend.stored(tmp_path).values()
    assert found.scale.dtype == kind
    assert (found.scale >= torch.finfo(kind).smallest_normal).all()
    assert not found.W[0].any()
    feeds = {"x0": x.to(kind)}
    by_channel = made.run(feeds)["y"].float().abs().amax((0, 2, 3))
    off = (OnnxRuntime(exact=True).open(tmp_path)(feeds)["y"].float() - made.run(feeds)["y"].float()).abs()
    assert (off.amax((0, 2, 3)) <= 2e-2 * by_channel + 100 * LEAST * (dtype == "float16")).all()
    assert difference(made.run, OnnxRuntime(exact=True).open(tmp_path), feeds) < 5e-3
    assert {x.dtype.name for x in read(tmp_path / MODEL_FILE).graph.initializers.values() if x.dtype} <= {
        "INT8", {"float32": "FLOAT", "float16": "FLOAT16"}[dtype]
    }  # fmt: skip
