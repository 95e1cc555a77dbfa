"""Which columns should share a group, before at most N of every M may stay. Arrays only.

The measure is that of Pool & Yu 2021 ("Channel permutations for N:M sparsity"): the score that is kept when each row
keeps the N highest of every group. They swap pairs of columns. Here one column is taken out of each group at a time,
and all of these are dealt out anew in the best of all ways (as Zhang et al. 2024, "Plug-and-play", do): with the
N-th highest score c of the M - 1 columns that stay, a column x adds max(c, x) to what a row keeps, and

    sum max(c, x) = (sum c + sum x + sum |c - x|) / 2,

so that the best deal is a linear assignment on distances. The deal before is one of those that it is chosen from:
what is kept never falls.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ROUNDS = 24
"""How often every group gives up a column. Past it the kept score rises by a few thousandths more."""

PART = 128
"""Groups that are dealt out to together: with all of many at once a round takes longer than it brings."""


def lost_score(S: Tensor, order: Tensor, n: int, m: int) -> float:
    """The sum of scores S (rows, d) not among the n highest of m neighbours, with columns in this order (d,)."""
    groups = S[:, order].reshape(len(S), -1, m)  # (rows, d / m, m)
    return float(groups.topk(m - n, dim=2, largest=False).values.sum(dtype=torch.float64))


def best_order(S: Tensor, n: int, m: int, seed: int, rounds: int = ROUNDS) -> Tensor:
    """The order (d,) of the columns of scores S (rows, d), d a multiple of m, in which little is lost.

    Never worse than the order in which they come. seed: chooses which columns are dealt anew together.
    """
    d = S.shape[1]
    before = torch.arange(d, device=S.device)
    groups = _dealt(S, m)
    generator = torch.Generator().manual_seed(seed)
    columns = S.T.contiguous()  # (d, rows)
    for _ in range(rounds):
        for part in torch.randperm(d // m, generator=generator).split(PART):
            _deal_anew(columns, groups, part, n, generator)
    order = groups.sort(dim=1).values.flatten()
    return order if lost_score(S, order, n, m) < lost_score(S, before, n, m) else before


def _dealt(S: Tensor, m: int) -> Tensor:
    """Columns dealt to groups (d / m, m) from the highest to the lowest, to and fro, so that all are alike."""
    rows = S.sum(0).argsort(descending=True, stable=True).reshape(m, -1).clone()  # (m, d / m)
    rows[1::2] = rows[1::2].flip(1)
    return rows.T.contiguous()


def _deal_anew(columns: Tensor, groups: Tensor, part: Tensor, n: int, generator: torch.Generator) -> None:
    """Take one column out of each of some groups, and put all of them where they add most, in place."""
    m = groups.shape[1]
    at = torch.randint(m, (len(part),), generator=generator)
    is_out = torch.nn.functional.one_hot(at, m).bool()  # (part, m)
    out, stays = groups[part][is_out], groups[part][~is_out].reshape(-1, m - 1)
    floor = columns[stays].topk(n, dim=1).values[:, -1]  # (part, rows)
    distance = torch.cdist(floor, columns[out], p=1).cpu().numpy()  # (groups, columns)
    _, chosen = linear_sum_assignment(distance, maximize=True)
    groups[part, at] = out[torch.from_numpy(chosen)]
