"""Stochastic depth: residual branches that are left out for some samples of a training batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """In training, sets a sample's branch to zero with a probability, and divides the others by the rest of it.

    Args:
        probability: of a branch being left out.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016 (arXiv:1603.09382), equation 2.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) -> the same shape."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < keep
        return x * (kept.to(x.dtype) / keep)


def rising(highest: float, depths: Sequence[int]) -> list[list[float]]:
    """Probabilities that rise evenly from 0 at the first block to `highest` at the last, for groups of blocks."""
    total = sum(depths)
    values = iter([highest * number / max(total - 1, 1) for number in range(total)])
    return [[next(values) for _ in range(depth)] for depth in depths]
