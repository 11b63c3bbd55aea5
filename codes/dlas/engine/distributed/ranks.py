"""This process among those that train together, and what they must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. Alone, agreeing costs nothing. Every method must be called by all of them, in the same order.

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

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def any_(self, flags: Tensor) -> Tensor:
        """In place, the largest value of each entry over all ranks."""
        if self.many:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return flags

    def mean_(self, values: Tensor) -> Tensor:
        """In place, the mean of each entry over all ranks."""
        if self.many:
            torch.distributed.all_reduce(values)  # gloo has no mean
            values.div_(self.world_size)
        return values

    def any(self, flag: bool) -> bool:
        """Whether a flag of the host is set on any rank; compared through the host, so the GPU is not waited for."""
        return bool(self.largest(int(flag)))

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers, likewise."""
        return int(self.any_(torch.tensor(number))) if self.many else number

    def wait(self) -> None:
        """Returns when all ranks have come here."""
        self.largest(0)

    def gather(self, value: T) -> list[T]:
        """Everybody's value (a plain object that can be pickled), by rank."""
        if not self.many:
            return [value]
        values: list[T | None] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # all are filled now

    def from_main(self, value: T) -> T:
        """Rank 0's value (a plain object that can be pickled); what others give does not count."""
        if not self.many:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, 0)
        return values[0]
