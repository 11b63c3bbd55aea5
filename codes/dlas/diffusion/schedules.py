"""Discrete noise schedules: alpha bar, the share of the data's variance that is left at each timestep."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def scaled_linear_betas(steps: int) -> Tensor:
    """sqrt(beta) from sqrt(0.00085) to sqrt(0.012) for 1000 timesteps, beta being 1000 / T times that for T: (T,), float64.

    Args:
        steps: timesteps T, at least 13: fewer would ask for a beta over 1.

    Raises:
        ConfigurationError: there are fewer.

    Source: the configuration files of Rombach et al. 2022 (arXiv:2112.10752), and of Stable Diffusion after them.
    """
    if steps < 13:
        raise ConfigurationError(f"a scaled linear schedule needs at least 13 timesteps, given: {steps}; take schedule: cosine")
    return 1000 / steps * torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64).square()


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


_BETAS: dict[str, Callable[[int], Tensor]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
}


def alpha_bars(schedule: Literal["linear", "scaled_linear", "cosine"], steps: int) -> Tensor:
    """alpha bar of each timestep: (T,), float64.

    Raises:
        ConfigurationError: the schedule is unknown or does not allow so few timesteps.
    """
    if schedule not in _BETAS:
        raise ConfigurationError(f"a schedule is {', '.join(map(repr, _BETAS))}; given: {schedule!r}")
    return torch.cumprod(1 - _BETAS[schedule](steps), dim=0)


def betas_of(bars: Tensor) -> Tensor:
    """beta of each timestep from alpha bar: (T,)."""
    return 1 - bars / torch.cat((bars.new_ones(1), bars[:-1]))


def rescale_to_zero_terminal_snr(bars: Tensor) -> Tensor:
    """alpha bar stretched so that the last one is 0 and the first stays.

    Source: Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
    """
    roots = bars.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()
