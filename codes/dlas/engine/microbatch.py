"""Cutting a batch into micro-batches whose gradients add up to those of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class MicroBatch:
    """Part of a batch.

    Args:
        state: the entries of this part; injectors add to it.
        share: its share of the batch. Losses are means, so weighting each part's loss by its share gives the mean over the
            batch, for uneven parts too.
        positions: place of each sample in the run's endless sample order.
    """

    state: dict[str, Any]
    share: float
    positions: list[int]


def split_batch(batch: dict[str, Any], positions: list[int], parts: int) -> list[MicroBatch]:
    """Cuts a batch along dimension 0 into `parts` pieces whose sizes differ by at most one.

    Tensors and lists with one entry per sample are cut; anything else belongs to every part.
    """
    total = len(positions)
    if parts == 1:
        return [MicroBatch(batch, 1.0, positions)]
    base, extra = divmod(total, parts)
    result, start = [], 0
    for part in range(parts):
        end = start + base + (part < extra)
        state = {key: value[start:end] if _per_sample(value, total) else value for key, value in batch.items()}
        result.append(MicroBatch(state, (end - start) / total, positions[start:end]))
        start = end
    return result


def _per_sample(value: Any, total: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.shape[0] == total
    return isinstance(value, list) and len(value) == total


def to_device(batch: dict[str, Any], device: torch.device, layout: torch.memory_format) -> dict[str, Any]:
    """Moves a batch's tensors; images (4-D) take the memory format. Copies from pinned memory do not block."""
    result = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            if device.type != "cpu":
                value = value.to(device, non_blocking=True)
            if value.dim() == 4 and layout is torch.channels_last:
                value = value.contiguous(memory_format=layout)
        result[key] = value
    return result
