"""torch's own 2:4 kernels against dense products on this GPU: what sparsity can gain, layer by layer.

    python -m benchmarks.gpu [--into benchmarks/gpu.md]

Each row is one product of GPT-2 or of a model of width 4096, x (M, K) by W (N, K), W pruned 2:4 along K by magnitude.
Ten calls are captured in a CUDA graph, so that launching costs nothing; dense and sparse graphs are replayed in turn.
cuSPARSELt runs with the algorithm that torch's search finds, where it runs; CUTLASS is torch's other kernel.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.passes.masks import nm_keep

GPT2 = [(2304, 768), (768, 768), (3072, 768), (768, 3072)]  # (N, K): c_attn, c_proj, c_fc, mlp.c_proj
WIDE = [(12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384)]
ROWS = (16, 128, 1024, 8192, 32768)
KERNELS = ("cuSPARSELt", "CUTLASS")
CALLS, ROUNDS = 10, 50
BEGIN = "<!-- measured -->"


def pruned(N: int, K: int, dtype: torch.dtype) -> Tensor:
    W = torch.randn(N, K, device="cuda")
    return (W * nm_keep(W.abs(), 2, 4)).to(dtype).contiguous()


def captured(call: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    """CALLS calls as one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph


def microseconds(graph: torch.cuda.CUDAGraph) -> float:
    """Of one call, by events on the device."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return 1000 * before.elapsed_time(after) / CALLS


def why_not(kernel: str) -> str:
    """Why a kernel cannot run on this GPU, or ""."""
    major, minor = torch.cuda.get_device_capability()
    if kernel == "CUTLASS" and major != 8:
        return f"torch has its CUTLASS kernel for compute capability 8.x, this GPU has {major}.{minor}"
    return ""


def sparse(W: Tensor, kernel: str, x: Tensor) -> Callable[[], Tensor]:
    """The product x W^T by one of torch's two kernels, W packed for it.

    torch's search for the fastest algorithm of cuSPARSELt can answer with one that the product then refuses, since it
    does not say how K is to be split: the default stands in for it.
    """
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    SparseSemiStructuredTensor._FORCE_CUTLASS = kernel == "CUTLASS"
    packed = to_sparse_semi_structured(W)
    if kernel == "cuSPARSELt":
        packed.alg_id_cusparselt = torch._cslt_sparse_mm_search(packed.packed, x.t().contiguous())  # type: ignore[arg-type]
        try:
            F.linear(x, packed)
        except RuntimeError:
            packed.alg_id_cusparselt = 0
    return lambda: F.linear(x, packed)


def measure(M: int, N: int, K: int, dtype: torch.dtype) -> list[str]:
    """One row: dense microseconds, then what each sparse kernel gains."""
    W, x = pruned(N, K, dtype), torch.randn(M, K, device="cuda", dtype=dtype)
    dense = captured(lambda: F.linear(x, W))
    spent = statistics.median(microseconds(dense) for _ in range(ROUNDS))
    name = str(dtype).removeprefix("torch.")
    return [str(M), f"{N}x{K}", name, f"{spent:.1f}", *(gain(kernel, dense, W, x) for kernel in KERNELS)]


def gain(kernel: str, dense: torch.cuda.CUDAGraph, W: Tensor, x: Tensor) -> str:
    """How many times faster the kernel is, with quartiles and its error, or why it did not run."""
    if why := why_not(kernel):
        return f"not run: {why}"
    try:
        product = sparse(W, kernel, x)
        found, expected = product().float(), F.linear(x, W).float()
        other = captured(product)
    except (RuntimeError, NotImplementedError) as reason:
        return f"not run: {str(reason).splitlines()[0][:80]}"
    ratios = []
    for round_ in range(ROUNDS):
        graphs = {"dense": dense, "sparse": other}
        order = graphs if round_ % 2 == 0 else reversed(graphs)
        spent = {name: microseconds(graphs[name]) for name in order}
        ratios.append(spent["dense"] / spent["sparse"])
    low, middle, high = statistics.quantiles(ratios, n=4)
    error = float((found - expected).abs().max() / expected.abs().max())
    return f"{middle:.2f}x ({low:.2f}-{high:.2f}), error {error:.0e}"


def table() -> str:
    lines = [
        f"`python -m benchmarks.gpu` on {torch.cuda.get_device_name()}: torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, cuSPARSELt {torch.backends.cusparselt.version()}; "
        f"medians (quartiles) of n={ROUNDS} rounds of {CALLS} calls; error is relative to the largest output",
        "",
        "| M | W (N, K) | dtype | dense us | cuSPARSELt gains | CUTLASS gains |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in (torch.float16, torch.bfloat16):
        for N, K in GPT2 + WIDE:
            for M in ROWS:
                lines.append(f"| {' | '.join(measure(M, N, K, dtype))} |")
                print(lines[-1], file=sys.stderr)
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, help="a page whose part after the mark is replaced by the table")
    into = parser.parse_args().into
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch finds no CUDA device here; nothing was measured", file=sys.stderr)
        return 2
    found = table()
    if into is None:
        print(found)
    else:
        into.write_text(into.read_text(encoding="utf-8").split(BEGIN)[0] + f"{BEGIN}\n\n{found}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
