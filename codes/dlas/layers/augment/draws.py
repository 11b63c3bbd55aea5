"""Random numbers of augmentations, one for each picture."""

from __future__ import annotations

import torch
from torch import Tensor


def happens(p: Tensor, count: int) -> Tensor:
    """Whether a change happens, (count,), each with chance `p`."""
    return torch.rand(count, device=p.device) < p


def normal(chosen: Tensor, deviation: float) -> Tensor:
    """Normally distributed where chosen, 0 elsewhere, (N,)."""
    return torch.where(chosen, deviation * torch.randn(len(chosen), device=chosen.device), 0.0)


def uniform(chosen: Tensor, low: float, high: float) -> Tensor:
    """Uniform in [low, high) where chosen, 0 elsewhere, (N,)."""
    return torch.where(chosen, low + (high - low) * torch.rand(len(chosen), device=chosen.device), 0.0)
