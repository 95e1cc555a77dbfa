"""Which samples a training run learns from, in which order, and when it is asked what it has learned."""

from dataclasses import dataclass

import torch

MOST_HELD_OUT = 1000


@dataclass(frozen=True)
class Plan:
    """steps: how many, of how many samples each (`batch`); seed: chooses them.

    warmup, held_out: shares of the steps and of the samples. clip: the largest norm of a gradient; 0 for any.
    checks: how often the samples held out are asked; patience: how many checks without progress end it, 0 for none.
    augment: what is done to images.
    """

    steps: int
    batch: int
    seed: int
    warmup: float
    held_out: float
    clip: float
    checks: int
    patience: int
    augment: tuple[str, ...] = ()

    def is_due(self, step: int) -> bool:
        """Whether the samples held out are asked after this many steps."""
        return step == self.steps or step % max(self.steps // self.checks, 1) == 0


class Order:
    """Which samples each step learns from, and which are held out."""

    def __init__(self, n: int, plan: Plan):
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(plan.seed)).tolist()
        n_held = n_held_out(n, plan.held_out)
        self.held, self.learned = sorted(shuffled[:n_held]), sorted(shuffled[n_held:])
        self.batch, self.seed = min(plan.batch, len(self.learned)), plan.seed
        self._epoch, self._order = -1, list[int]()

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch; what is left over after them waits for the next, in another order."""
        return len(self.learned) // self.batch

    def rows(self, step: int) -> list[int]:
        epoch, at = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed(self.seed, epoch, 1))
            self._epoch, self._order = epoch, torch.randperm(len(self.learned), generator=generator).tolist()
        return [self.learned[i] for i in self._order[at * self.batch : (at + 1) * self.batch]]


def n_held_out(n: int, share: float) -> int:
    """At least one, at most MOST_HELD_OUT, which tell the loss well enough."""
    return min(max(round(share * n), 1), MOST_HELD_OUT)


def mixed(seed: int, *numbers: int) -> int:
    """A seed for each of several uses of one."""
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 63)
    return seed
