"""Heun's method, as in EDM."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.processes import Grid
from dlas.diffusion.samplers.base import Noise, Sampler, Stage, drift
from dlas.registry import SAMPLERS
from dlas.types import NonNegativeFloat


@SAMPLERS.register("heun", "edm")
class Heun(Sampler):
    """Second order for two calls of the network a step (one in the last); may stir noise in before each step.

    Args:
        s_churn: how much noise is added over all steps together; 0 solves the ordinary differential equation.
        s_min: least sigma / alpha at which noise is added.
        s_max: largest such.
        s_noise: factor of the added noise's standard deviation; a little over 1 makes up for detail that networks lose.
        along: what slopes are averaged of. ratio: of x / alpha by sigma / alpha, as in EDM; velocity: of x / (alpha + sigma) by
            sigma / (alpha + sigma), which for flows is the velocity by t. By default ratio where alpha is 1 at all levels;
            elsewhere velocity, since ratio is large and of little accuracy where hardly any signal is left.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithms 1 and 2, for any alpha and sigma.
    """

    def __init__(
        self,
        *,
        s_churn: NonNegativeFloat = 0.0,
        s_min: NonNegativeFloat = 0.0,
        s_max: NonNegativeFloat | None = None,
        s_noise: NonNegativeFloat = 1.0,
        along: Literal["ratio", "velocity"] | None = None,
    ) -> None:
        self.s_churn, self.s_min, self.s_noise = s_churn, s_min, s_noise
        self.s_max = math.inf if s_max is None else s_max
        self.along = along

    def walk(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Stage]:
        """See `Sampler`."""
        velocity = self.along == "velocity" or (self.along is None and any(alpha != 1 for alpha in grid.alphas))
        for k in range(grid.steps):
            step = self.stirred(grid, k)
            if step.sigmas[0] != grid.sigmas[k]:
                x = step.alphas[0] / grid.alphas[k] * x
                x = x + self.s_noise * step.alphas[0] * math.sqrt(step.ratio(0) ** 2 - grid.ratio(k) ** 2) * noise(k)
            x0 = denoise(x, step.times[0]).x0
            reached = drift(x, x0, step, 0)
            if step.sigmas[1] > 0 and (velocity or step.alphas[0] > 0):
                begin = slope(x, x0, step, 0, velocity)
                x0 = denoise(reached, step.times[1]).x0
                reached = reached + half_length(step, velocity) * (slope(reached, x0, step, 1, velocity) - begin)
            x = reached
            yield Stage(x, x0)

    def stirred(self, grid: Grid, k: int) -> Grid:
        """The k-th step alone, begun at the level to which noise is stirred in: the nearest there is, if time is discrete."""
        time, alpha, sigma, ratio = grid.times[k], grid.alphas[k], grid.sigmas[k], grid.ratio(k)
        grow = 1 + min(self.s_churn / grid.steps, math.sqrt(2) - 1)
        if grow > 1 and self.s_min <= ratio <= self.s_max and math.isfinite(ratio):
            times = grid.process.at_ratio(torch.tensor([grow * ratio], dtype=torch.float64))
            higher = grid.process.grid(times.tolist())
            if higher.ratio(0) > ratio:
                time, alpha, sigma = higher.times[0], higher.alphas[0], higher.sigmas[0]
        return Grid((time, grid.times[k + 1]), (alpha, grid.alphas[k + 1]), (sigma, grid.sigmas[k + 1]), grid.process)


def slope(x: Tensor, x0: Tensor, step: Grid, end: int, velocity: bool) -> Tensor:
    """eps at the beginning (0) or end (1) of a step, or the velocity eps - x0 there."""
    eps = (x - step.alphas[end] * x0) / step.sigmas[end]
    return eps - x0 if velocity else eps


def half_length(step: Grid, velocity: bool) -> float:
    """Half the step's length in what the slope is by, times what `x` was divided by at its end."""
    before, after = (alpha + sigma if velocity else alpha for alpha, sigma in zip(step.alphas, step.sigmas, strict=True))
    return after * (step.sigmas[1] / after - step.sigmas[0] / before) / 2
