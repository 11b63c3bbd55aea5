"""DDIM."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.processes import Grid
from dlas.diffusion.samplers.base import Noise, Sampler, Stage
from dlas.registry import SAMPLERS
from dlas.types import NonNegativeFloat


@SAMPLERS.register("ddim")
class DDIM(Sampler):
    """First order, any number of steps; without noise it is the same as Euler's method in sigma / alpha.

    Args:
        eta: 0 adds no noise, 1 as much as the ancestral sampler.

    Source: Song et al. 2021 (arXiv:2010.02502), equation 12, for any alpha and sigma.
    """

    def __init__(self, *, eta: NonNegativeFloat = 0.0) -> None:
        self.eta = eta

    def walk(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Stage]:
        """See `Sampler`."""
        for k in range(grid.steps):
            alpha, sigma = grid.alphas[k], grid.sigmas[k]
            next_alpha, next_sigma = grid.alphas[k + 1], grid.sigmas[k + 1]
            x0 = denoise(x, grid.times[k]).x0
            eps = (x - alpha * x0) / sigma
            between = max(0.0, sigma**2 - (alpha * next_sigma / next_alpha) ** 2)  # variance that the step down takes away
            fresh = self.eta * next_sigma / sigma * math.sqrt(between)
            kept = math.sqrt(max(0.0, next_sigma**2 - fresh**2))
            x = next_alpha * x0 + kept * eps
            if fresh > 0:
                x = x + fresh * noise(k)
            yield Stage(x, x0)
