"""Pictures and weights made by rule, the same on every machine: `RandomState` is frozen by numpy."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def picture(seed: int, height: int = 192, width: int = 208, count: int = 2) -> Tensor:
    """Smooth patches with some noise, (count, 3, height, width), float32, in [0, 1]."""
    draw = np.random.RandomState(seed)
    coarse = draw.uniform(0.1, 0.9, (count, 3, -(-height // 16), -(-width // 16)))
    smooth = coarse.repeat(16, 2).repeat(16, 3)[..., :height, :width]
    return torch.from_numpy((smooth + draw.normal(0, 0.02, smooth.shape)).clip(0, 1)).float()


def pair(height: int = 192, width: int = 208) -> tuple[Tensor, Tensor]:
    """A picture and a worse one: blended with another, and noisier."""
    true = picture(1, height, width)
    noise = np.random.RandomState(3).normal(0, 0.03, true.shape)
    worse = 0.85 * true + 0.15 * picture(2, height, width) + torch.from_numpy(noise).float()
    return true, worse.clamp(0, 1)


def weights(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the given names and shapes that passes signals on through many layers.

    Each entry depends on its name from the last number on ("12.weight") and its shape, not on what stands before it.
    """
    return {
        name: torch.zeros_like(entry)
        if name.endswith("num_batches_tracked")
        else _drawn(name.rsplit(".", 1)[-1], tuple(entry.shape))
        for name, entry in entries.items()
    }


@lru_cache
def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    draw = np.random.RandomState(zlib.crc32(f"{name}{shape}".encode()) % 2**31).standard_normal(shape)
    if len(shape) == 4:
        value = draw * (2 / np.prod(shape[1:])) ** 0.5
    elif name == "running_var":
        value = 1 + 0.2 * np.abs(draw)
    elif name == "weight":
        value = 1 + 0.1 * draw
    else:
        value = 0.05 * draw
    return torch.from_numpy(value).float()


def heads(channels: tuple[int, ...]) -> list[Tensor]:
    """Positive numbers, one a channel, for each layer."""
    return [torch.from_numpy(np.random.RandomState(count).uniform(0, 1, count)).float() for count in channels]


def pristine() -> tuple[np.ndarray, np.ndarray]:
    """Stand-ins for the parameters of NIQE: mean (1, 36), covariance (36, 36)."""
    draw = np.random.RandomState(36)
    root = draw.normal(0, 0.2, (36, 36))
    return draw.uniform(0, 2, (1, 36)), root @ root.T + 0.1 * np.eye(36)
