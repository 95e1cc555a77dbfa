"""What a pruned layer is fitted to. Arrays only."""

import torch
from torch import Tensor

from compressor.passes.damping import is_dead


def dense_target(W: Tensor, G: Tensor, H: Tensor, H_damped: Tensor) -> Tensor:
    """The weights (m, d) that make of pruned inputs X what W makes of the dense inputs Z, as nearly as any can.

    The minimum over V of |V X - W Z|^2 + |(V - W) L^1/2|^2 is W* = (W G + W L) (H + L)^-1, with H = X X^T, G = Z X^T
    and L = H_damped - H; the objective is tr (V - W*) (H + L) (V - W*)^T and a constant, so that every method runs
    unchanged on W* and the damped H. It is solved for the small W* - W = W (G - H) (H + L)^-1. A dead channel keeps
    its weights.
    """
    R = W @ (G - H).masked_fill(is_dead(H), 0)  # (m, d)
    return W + torch.linalg.solve(H_damped, R, left=False)
