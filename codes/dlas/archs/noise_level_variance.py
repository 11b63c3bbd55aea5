"""How large a diffusion's loss is at a noise level, learned along with it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dlas.registry import ARCHS
from dlas.types import PositiveFloat, PositiveInt


@ARCHS.register("noise_level_variance")
class NoiseLevelVariance(nn.Module):
    """u(level), with which losses are weighted as loss / exp(u) + u: random Fourier features and one linear map.

    It starts as 0, which leaves losses as they are. Train it in the step that trains the diffusion; it is needed for training
    only. Its input is what `dlas.diffusion.weightings.noise_coordinate` gives.

    Args:
        channels: Fourier features.
        bandwidth: standard deviation of their frequencies; larger follows changes within smaller ranges of levels.

    Source: Karras et al. 2024 (arXiv:2312.02696), there 128 features; Tancik et al. 2020 (arXiv:2006.10739).
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, *, channels: PositiveInt = 128, bandwidth: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * bandwidth * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))
        self.linear = nn.Linear(channels, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, coordinate: Tensor) -> Tensor:
        """ln(sigma / alpha) / 4 of each sample, (B,) -> u, (B,)."""
        angles = torch.outer(coordinate.float(), self.frequencies.float()) + self.phases.float()
        features = math.sqrt(2) * angles.cos()
        return self.linear(features.to(self.linear.weight.dtype)).squeeze(1)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"channels": 8}, (torch.randn(4),)
