"""The layer solvers against the paper's column loop: seconds, masks, errors. Prints the tables of solver.md.

python -m benchmarks.solver [--runs 5]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compressor.passes.damping import dampen
from compressor.passes.gram import Gram
from compressor.passes.masks import nm_keep
from compressor.passes.refit import conjugate_gradients, relative_error
from compressor.passes.sparsegpt import sparsegpt
from compressor.pattern import NM, Pattern, Ratio
from tests.passes.reference import factor_of_inverse, layer, plain_sparsegpt, worst_choice

SHAPES = [(768, 3072), (3072, 768), (768, 768)]
PATTERNS: list[Pattern] = [NM(2, 4), Ratio(0.6)]
DAMPING = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    print(f"{versions}, 1 thread, n={runs}\n")
    print_speed(runs)
    print_errors()


def print_speed(runs: int) -> None:
    row(
        "W",
        "pattern",
        "plain s",
        "of it factor",
        "ours s",
        "of it factor",
        "faster",
        "faster, loop only",
        "CG10 ms",
        "masks differ",
        "rows",
        "differ in float64",
        "worst choice plain",
        "ours",
    )
    row(*["---"] * 14)
    for m, d in SHAPES:
        W, X = layer(m, d, 4 * d)
        H = dampen(X.T @ X / len(X), DAMPING)
        for pattern in PATTERNS:
            V, keep = sparsegpt(W, H, pattern)
            _, keep_plain = plain_sparsegpt(W, H, pattern)
            plain, plain_factor, ours, factor, refit = seconds_in_turn(
                runs,
                lambda: plain_sparsegpt(W, H, pattern),  # noqa: B023
                lambda: factor_of_inverse(H),  # noqa: B023
                lambda: sparsegpt(W, H, pattern),  # noqa: B023
                lambda: Gram(H).upper(),  # noqa: B023
                lambda: conjugate_gradients(V, keep, W, H, 10),  # noqa: B023
            )
            loops = [[a - b for a, b in zip(*pair, strict=True)] for pair in ((plain, plain_factor), (ours, factor))]
            differ = keep != keep_plain
            W64, H64 = W.double(), H.double()
            differ64 = sparsegpt(W64, H64, pattern)[1] != plain_sparsegpt(W64, H64, pattern)[1]
            row(
                f"{m}x{d}",
                pattern,
                spread(plain),
                spread(plain_factor),
                spread(ours),
                spread(factor),
                times(plain, ours),
                times(*loops),
                spread([1e3 * s for s in refit], 0),
                f"{int(differ.sum())} of {keep.numel()}",
                f"{int(differ.any(1).sum())} of {m}",
                int(differ64.sum()),
                *[f"{worst_choice(W, H, pattern, mask):.0e}" for mask in (keep_plain, keep)],
            )
    print()


def print_errors(m: int = 768, d: int = 768, n: int = 64 * 768) -> None:
    row(
        "mask",
        *[f"{pattern}, {what}" for pattern in ("2:4", "1:4") for what in ("alone", "+ 10 CG", "ratio")],
    )
    row(*["---"] * 7)
    W, X = layer(m, d, 2 * n)
    H, H_fresh = (half.T @ half / n for half in torch.split(X, n))
    H = dampen(H, DAMPING)
    solvers: dict[str, Callable[[NM], tuple[Tensor, Tensor]]] = {
        "magnitude": lambda p: masked(W, nm_keep(W.abs(), p.n, p.m)),
        "wanda": lambda p: masked(W, nm_keep(W.abs() * H.diagonal().sqrt(), p.n, p.m)),
        "sparsegpt": lambda p: sparsegpt(W, H, p),
    }
    for name, solve in solvers.items():
        cells = []
        for pattern in (NM(2, 4), NM(1, 4)):
            V, keep = solve(pattern)
            alone = relative_error(V, W, H_fresh)
            refitted = relative_error(conjugate_gradients(V, keep, W, H), W, H_fresh)
            cells += [f"{alone:.4f}", f"{refitted:.4f}", f"{refitted / alone:.2f}"]
        row(name, *cells)


def masked(W: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    return W * keep, keep


def seconds_in_turn(runs: int, *calls: Callable[[], Any]) -> list[list[float]]:
    """Every call once to warm up, then all in turn, `runs` times."""
    seconds: list[list[float]] = [[] for _ in calls]
    for run in range(-1, runs):
        for call, measured in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if run >= 0:
                measured.append(time.perf_counter() - start)
    return seconds


def spread(values: list[float], digits: int = 3) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def times(slow: list[float], fast: list[float]) -> str:
    """The median of the ratios run by run, with its spread."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)], 2)


def row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
