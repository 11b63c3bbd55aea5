"""Consistency models: networks that give data in one call, from any noise level of one path."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from dlas.diffusion.levels import Level
from dlas.diffusion.processes import Process
from dlas.diffusion.tables import on_host
from dlas.errors import ConfigurationError


def boundary_x0(output: Tensor, x: Tensor, level: Level, sigma_data: float, least: float) -> Tensor:
    """What a consistency model gives: c_skip x / alpha + c_out F, which is x / alpha itself at the least noise.

    With r = sigma / alpha: c_skip = s^2 / ((r - least)^2 + s^2) and c_out = s (r - least) / sqrt(r^2 + s^2).

    Args:
        output: F, of the network, (B, ...).
        x: what it was shown.
        level: noise levels, alpha > 0.
        sigma_data: s, standard deviation of the data.
        least: sigma / alpha of the least noise.

    Source: Song et al. 2023 (arXiv:2303.01469), appendix C.
    """
    ratio = level.ratio
    skip = sigma_data**2 / ((ratio - least).square() + sigma_data**2)
    scale = sigma_data * (ratio - least) * (ratio.square() + sigma_data**2).rsqrt()
    return skip * x / level.alpha + scale * output


def check_path(process: Process) -> None:
    """Whether a consistency model can be trained along a process.

    Raises:
        ConfigurationError: its times are not continuous.
    """
    if process.discrete:
        raise ConfigurationError("consistency: the process has timesteps; take process edm or flow, whose times are continuous")


def discretisation(step: int, total: int, first: int, last: int, growth: Literal["sqrt", "doubling"] = "doubling") -> int:
    """N, how many noise levels the path is cut at after `step` iterations: few at first, for fast learning, then more.

    sqrt: ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1; doubling: min(s0 2^floor(k / K'), s1) + 1, with K' such that s1
    is reached in the last of equal stages.

    Args:
        step: k.
        total: K; afterwards N stays.
        first: s0, intervals at the start.
        last: s1, intervals at the end.
        growth: the rule.

    Source: Song et al. 2023 (arXiv:2303.01469), appendix C; doubling: Song and Dhariwal 2023 (arXiv:2310.14189), section 3.4.
    """
    done = min(step, total)
    if growth == "sqrt":
        return math.ceil(math.sqrt(done / total * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1
    stage = max(1, total // (int(math.log2(last // first)) + 1))
    return min(first * 2 ** min(done // stage, 62), last) + 1


def ladder(count: int, least: float, most: float, rho: float = 7.0) -> Tensor:
    """`count` values of sigma / alpha from `least` up to `most`, equally far apart in their rho-th root: (count,), float64."""
    with on_host():
        places = torch.linspace(0, 1, count, dtype=torch.float64)
        low, high = least ** (1 / rho), most ** (1 / rho)
        return (low + places * (high - low)) ** rho


def rung_shares(ratios: Tensor, mean: float, std: float) -> Tensor:
    """How often each neighbouring pair of a ladder is trained, summed up to it: (N - 1,), float64, the last one 1.

    Args:
        ratios: the ladder, (N,), ascending.
        mean: of ln(sigma / alpha), which is normal.
        std: its standard deviation.

    Source: Song and Dhariwal 2023 (arXiv:2310.14189), section 3.5.
    """
    with on_host():
        places = torch.special.erf((ratios.log() - mean) / (math.sqrt(2) * std))
        shares = (places[1:] - places[:-1]).clamp(min=1e-30)
        sums = shares.cumsum(0)
        return sums / sums[-1]


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(|d|^2 + c^2) - c of each sample's difference d (B, ...): (B,).

    Source: Song and Dhariwal 2023 (arXiv:2310.14189), equation 7.
    """
    return (difference.flatten(1).square().sum(1) + c**2).sqrt() - c
