"""This process among those that train together, and what they must agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. Alone, agreeing costs nothing.

    Args:
        rank: number of this process, in [0, world_size).
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def current() -> Ranks:
        """What torch.distributed was told, or a single process."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return Ranks()

    def any_(self, flags: Tensor) -> Tensor:
        """In place, the largest value of each entry over all ranks. Every rank must call it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return flags

    def mean_(self, values: Tensor) -> Tensor:
        """In place, the mean of each entry over all ranks. Every rank must call it."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)  # gloo has no mean
            values.div_(self.world_size)
        return values
