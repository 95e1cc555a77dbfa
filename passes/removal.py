"""How much each unit of a channel group matters, and what its removal costs the layers that read it. Arrays only.

A layer is W (m, d) on inputs whose mean Gram matrix is H (d, d), positive definite (damped). `owner` (d,) says which
unit each column belongs to, -1 for none. Scores are higher where a unit should stay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ROUND = 16
"""A round of `removal_errors` removes one in so many of the units that are left, and at least one."""


def by_unit(values: Tensor, owner: Tensor, units: int) -> Tensor:
    """Values of positions (d,), summed up for each unit (units,)."""
    owned = owner >= 0
    return values.new_zeros(units).index_add_(0, owner[owned], values[owned])


def magnitude(x: Tensor, axis: int, owner: Tensor, units: int) -> Tensor:
    """The sum of squares that each unit owns of a tensor along one axis: (units,) float64."""
    return by_unit(x.detach().double().square().movedim(axis, 0).reshape(x.shape[axis], -1).sum(1), owner, units)


def activation(W: Tensor, H: Tensor, owner: Tensor, units: int) -> Tensor:
    """The energy of what each unit's columns bring to the outputs, one by one: (units,).

    The squared score of Wanda (Sun et al. 2023), |W_ij| ||X_j||, summed over a unit.
    """
    return by_unit(W.square().sum(0) * H.diagonal(), owner, units)


def refitted(W: Tensor, H: Tensor, keep: Tensor) -> Tensor:
    """The V (m, d), zero where keep (d,) is False, that is nearest to W: V_K = W_K + W_R H_RK (H_KK)^-1.

    It minimizes tr (V - W) H (V - W)^T, the mean squared change of the outputs.
    """
    V = W * keep
    factor = torch.linalg.cholesky(H[keep][:, keep])
    made_up = torch.cholesky_solve((W[:, ~keep] @ H[~keep][:, keep]).T, factor).T  # (m, kept)
    V[:, keep] += made_up
    return V


class Shrinking:
    """A layer that loses units one after the other, what is left being refitted each time.

    P is the inverse of H on the columns that are left. Removing columns S changes the outputs by
    tr W_S (P_SS)^-1 W_S^T (optimal brain surgeon, Hassibi & Stork 1992, for sets of weights), and leaves
    W - W_S (P_SS)^-1 P_S and P - P_S^T (P_SS)^-1 P_S.
    """

    def __init__(self, W: Tensor, H: Tensor, owner: Tensor):
        self.W, self.owner = W.clone(), owner.clone()
        self.P = torch.cholesky_inverse(torch.linalg.cholesky(H))

    def errors(self, units: int) -> Tensor:
        """(units,) what removing each unit next would cost; infinite for those that own no column any more."""
        found = self.W.new_full((units,), torch.inf)
        sizes = torch.bincount(self.owner[self.owner >= 0], minlength=units)
        for size in sizes.unique().tolist():
            if size:
                members = (sizes == size).nonzero().flatten()  # (n,)
                found[members] = self._errors_of(members, size)
        return found

    def _errors_of(self, members: Tensor, size: int) -> Tensor:
        """Of units that own `size` columns each: (n,)."""
        mine = torch.isin(self.owner, members).nonzero().flatten()
        S = mine[self.owner[mine].argsort(stable=True)].reshape(len(members), size)  # (n, size), members in order
        W_S = self.W[:, S].movedim(1, 0)  # (n, m, size)
        P_SS = self.P[S[:, :, None], S[:, None, :]]  # (n, size, size)
        return torch.linalg.solve(P_SS, W_S.mT @ W_S).diagonal(dim1=1, dim2=2).sum(1)

    def remove(self, gone: Tensor) -> None:
        """Remove units, given by number."""
        is_out = torch.isin(self.owner, gone)
        S, K = is_out.nonzero().flatten(), (~is_out).nonzero().flatten()
        share = torch.linalg.solve(self.P[S][:, S], self.P[S][:, K])  # (S, K)
        self.W = self.W[:, K] - self.W[:, S] @ share
        self.P = self.P[K][:, K] - self.P[K][:, S] @ share
        self.owner = self.owner[K]


def removal_errors(layers: Sequence[tuple[Tensor, Tensor, Tensor]], units: int) -> Tensor:
    """What it costs to remove each unit at its turn, the cheapest first and the rest refitted each time: (units,).

    layers: (W, H, owner) of every consumer. Costs are shares of each layer's output energy tr W H W^T, summed over the
    layers, and never fall from one turn to the next, so that the k least are the k that go first. The last ones
    cost what is left.
    """
    left = [Shrinking(*layer) for layer in layers]
    energies = [float(((W @ H) * W).sum().clamp_min(torch.finfo(W.dtype).tiny)) for W, H, _ in layers]
    found = layers[0][0].new_zeros(units)
    waiting, most = torch.ones(units, dtype=torch.bool), 0.0
    while waiting.any():
        errors = torch.stack([one.errors(units) / energy for one, energy in zip(left, energies, strict=True)])
        errors = torch.where(torch.isinf(errors), 0, errors).sum(0).masked_fill(~waiting, torch.inf)
        gone = errors.argsort(stable=True)[: max(1, int(waiting.sum()) // ROUND)]
        found[gone] = errors[gone].clamp_min(most)
        most = float(found[gone].max())
        waiting[gone] = False
        for one in left:
            one.remove(gone)
    return found
