"""What TensorRT prints and lists about sparse kernels, read from lines as its versions write them."""

import json

import pytest

from compressor.backends.tensorrt_log import Sparsity, read_layers, read_log

TEN = [
    "[INFO] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: h.0.mlp.c_fc, h.0.mlp.c_proj, h.1.mlp.c_fc",
    "[INFO] (Sparsity) Chose 1 layer(s) using sparse tactics: h.0.mlp.c_fc",
]
EIGHT = [
    "[I] (Sparsity) Layers eligible for sparse math: conv1, conv2",
    "[I] (Sparsity) TRT inference plan picked sparse implementation for layers: conv2",
]


def test_reads_counts_and_names_of_ten_and_later():
    expected = Sparsity(3, 1, ("h.0.mlp.c_fc", "h.0.mlp.c_proj", "h.1.mlp.c_fc"), ("h.0.mlp.c_fc",))
    assert read_log(TEN) == expected


def test_reads_the_wording_of_eight():
    assert read_log(EIGHT) == Sparsity(2, 1, ("conv1", "conv2"), ("conv2",))


def test_reads_counts_without_names():
    lines = [
        "[INFO] (Sparsity) Found 48 layer(s) eligible to use sparse tactics",
        "[INFO] (Sparsity) Chose 31 layer(s) using sparse tactics",
    ]
    assert read_log(lines) == Sparsity(48, 31)


def test_zero_chosen_is_zero():
    lines = [
        "(Sparsity) Found 39 layer(s) eligible to use sparse tactics: a",
        "(Sparsity) Chose 0 layer(s) using sparse tactics",
    ]
    assert (read_log(lines).eligible, read_log(lines).chosen) == (39, 0)
    assert read_log(["(Sparsity) Layers eligible for sparse math: "]).eligible == 0


def test_no_line_is_unknown_and_not_zero():
    assert read_log(["[VERBOSE] Adding network input: x", "[INFO] sparsity of the moment"]) == Sparsity()


def test_the_last_pair_counts_for_each_round_prints_one():
    first = [
        "(Sparsity) Found 5 layer(s) eligible to use sparse tactics: a, b, c, d, e",
        "(Sparsity) Chose 5 layer(s) using sparse tactics: a, b, c, d, e",
    ]
    found = read_log([*first, *TEN])
    assert (found.eligible, found.chosen) == (3, 1)


SPARSE = "sm80_xmma_sparse_gemm_f16f16_f16f16_f16_tn_n_tilesize128x128x64_stage3_warpsize2x2x1_sptensor16x8x32"
DENSE = "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize128x128x32_stage4_warpsize2x2x1_tensor16x8x16"
SITES = {name: f"{name}.weight" for name in ("h.1.mlp.c_fc", "h.10.mlp.c_fc", "h.1.mlp")}


def test_reads_tactics_of_both_forms_of_detailed_json():
    ten = {
        "Layers": [
            {"Name": "h.1.mlp.c_fc + add", "LayerType": "CaskGemmMatrixMultiply", "TacticName": SPARSE,
             "HasSparseWeights": 1, "Inputs": [{"Name": "x", "Format/Datatype": "Half"}]},
            {"Name": "h.10.mlp.c_fc", "LayerType": "CaskGemmMatrixMultiply", "TacticName": DENSE,
             "HasSparseWeights": 1},
        ],
        "Bindings": ["x", "y"],
    }  # fmt: skip
    eleven = {"Layers": ten["Layers"], "I/O Tensors": [{"Name": "x", "Format": "Linear", "Datatype": "Half"}]}
    for form in (ten, eleven):
        sparse, dense = read_layers(json.dumps(form), SITES)
        assert (sparse.site, sparse.is_sparse, sparse.tactic) == ("h.1.mlp.c_fc.weight", True, SPARSE)
        assert (dense.site, dense.is_sparse) == ("h.10.mlp.c_fc.weight", False), (
            "weights that fit are not a kernel that ran"
        )


def test_reads_bare_names_as_layers_of_unknown_kernels():
    [layer] = read_layers('{"Layers": ["h.1.mlp.c_fc"], "Bindings": []}', SITES)
    assert (layer.site, layer.tactic, layer.is_sparse) == ("h.1.mlp.c_fc.weight", "", False)


@pytest.mark.parametrize(
    ("tactic", "is_sparse"),
    [
        (SPARSE, True),
        ("sm90_xmma_gemm_spmma_e4m3", True),
        ("cutlass3x_sm100_spgemm_f16", True),
        ("ampere_sp_gemm_128x64", True),
        (DENSE, False),
        ("", False),
        ("__myl_FcAdd_0x1234", False),
    ],
)
def test_a_sparse_kernel_is_known_by_its_name(tactic, is_sparse):
    text = json.dumps({"Layers": [{"Name": "a", "TacticName": tactic}]})
    assert read_layers(text, {})[0].is_sparse == is_sparse


def test_a_site_is_found_in_the_metadata_of_a_fused_layer():
    layer = {"Name": "__myl_Fc_0", "TacticName": "x", "Metadata": "[ONNX Layer: h.1.mlp.c_fc]\u001e[ONNX Layer: add]"}
    assert read_layers(json.dumps({"Layers": [layer]}), SITES)[0].site == "h.1.mlp.c_fc.weight"
    assert read_layers(json.dumps({"Layers": [{**layer, "Metadata": "other"}]}), SITES)[0].site == ""
