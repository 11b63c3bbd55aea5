"""Bringing together what the processes of a run have seen; without others, nothing happens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def are_many() -> bool:
    """Whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def add_up(*totals: Tensor) -> None:
    """Makes each tensor the sum over all processes, in place."""
    if are_many():
        for total in totals:
            distributed.all_reduce(total)


def summed(values: Tensor) -> Tensor:
    """The sum over all processes; `values` itself stays."""
    if are_many():
        values = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(values)
    return values


def how_many() -> int:
    """Number of processes."""
    return distributed.get_world_size() if are_many() else 1


def largest(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers; waits for the device."""
    if not are_many():
        return number
    found = torch.tensor(number, device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return int(found)


def gather(rows: Tensor) -> Tensor:
    """All processes' rows (N, ...), those of the first process first; each may have another N."""
    if not are_many():
        return rows
    count = torch.tensor(len(rows), device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    most = max(map(int, counts))
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`, with gradients: that of a row is the sum of those that the processes have for it. Waits for no device."""
    if not are_many():
        return rows
    count = torch.tensor(len(rows))  # it stays on the host, as do the others'
    counts = [torch.zeros_like(count) for _ in range(how_many())]
    distributed.all_gather(counts, count)
    gathered: Tensor = _Gather.apply(rows, [int(each) for each in counts])
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.split(ctx.counts)[distributed.get_rank()], None
