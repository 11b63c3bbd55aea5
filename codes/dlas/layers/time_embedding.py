"""What a network is told of a time: waves of many lengths."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(times: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of times at frequencies from 1 down to nearly 1 / `max_period`, evenly spaced in their logarithm.

    Args:
        times: (B,), of any kind of number; need not be whole.
        channels: of the result; if odd, the last one is 0.
        max_period: length of the longest wave over 2 pi.

    Returns:
        (B, channels), float32.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, in the order of Ho et al. 2020 (arXiv:2006.11239) with sine
    and cosine exchanged, as guided-diffusion has it.
    """
    half = channels // 2
    # For times in the thousands the rounding of a frequency shows in the fourth digit: this is the published order.
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=times.device) / half
    angles = times[:, None].float() * exponents.exp()
    waves = torch.cat((angles.cos(), angles.sin()), dim=1)
    return F.pad(waves, (0, 1)) if channels % 2 else waves


class TimeEmbedding(nn.Sequential):
    """`timestep_embedding` and two linear layers; the result has four times as many channels.

    Args:
        channels: of the waves.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))
        self.channels = channels

    def forward(self, times: Tensor) -> Tensor:
        """Times (B,) -> (B, 4 channels), in the type of the weights, not rounded by autocast."""
        first = self[0]
        assert isinstance(first, nn.Linear)
        with torch.autocast(times.device.type, enabled=False):
            return super().forward(timestep_embedding(times, self.channels).to(first.weight.dtype))
