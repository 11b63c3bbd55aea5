"""Discrete noise schedules: alpha bar, the share of the data's variance that is left at each timestep."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dlas.errors import ConfigurationError


def linear_betas(steps: int) -> Tensor:
    """beta from 1e-4 to 0.02 for 1000 timesteps, and 1000 / T times that for T: (T,), float64.

    Args:
        steps: timesteps T, at least 20: fewer would ask for a beta over 1.

    Raises:
        ConfigurationError: there are fewer.

    Source: Ho et al. 2020 (arXiv:2006.11239), section 4; the scaling: Nichol and Dhariwal 2021 (arXiv:2102.09672).
    """
    if steps < 20:
        raise ConfigurationError(f"a linear schedule needs at least 20 timesteps, given: {steps}; take schedule: cosine")
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """beta by which alpha bar falls like the square of a cosine: (T,), float64.

    Args:
        steps: timesteps T.
        offset: keeps beta from being too small at the first timesteps.
        largest: beta is cut off there, or the last one would be 1.

    Source: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 17.
    """

    def bar(time: float) -> float:
        return math.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2

    return torch.tensor([min(1 - bar((i + 1) / steps) / bar(i / steps), largest) for i in range(steps)], dtype=torch.float64)


def alpha_bars(schedule: Literal["linear", "cosine"], steps: int) -> Tensor:
    """alpha bar of each timestep: (T,), float64.

    Raises:
        ConfigurationError: the schedule is unknown or does not allow so few timesteps.
    """
    if schedule not in ("linear", "cosine"):
        raise ConfigurationError(f"a schedule is 'linear' or 'cosine'; given: {schedule!r}")
    return torch.cumprod(1 - (linear_betas(steps) if schedule == "linear" else cosine_betas(steps)), dim=0)


def betas_of(bars: Tensor) -> Tensor:
    """beta of each timestep from alpha bar: (T,)."""
    return 1 - bars / torch.cat((bars.new_ones(1), bars[:-1]))


def rescale_to_zero_terminal_snr(bars: Tensor) -> Tensor:
    """alpha bar stretched so that the last one is 0 and the first stays.

    Source: Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
    """
    roots = bars.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()
