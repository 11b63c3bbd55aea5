"""What a network is told of a time: waves of many lengths."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    return torch.nn.functional.pad(waves, (0, channels % 2)) if channels % 2 else waves
