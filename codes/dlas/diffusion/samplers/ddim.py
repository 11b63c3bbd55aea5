"""DDIM, and with it Euler's method."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.processes import Grid
from dlas.diffusion.samplers.base import Noise, Sampler, Stage, drift
from dlas.registry import SAMPLERS
from dlas.types import NonNegativeFloat


@SAMPLERS.register("ddim", "euler")
class DDIM(Sampler):
    """First order, any number of steps. Without noise it is Euler's method in sigma / alpha, and for flows that in t, too.

    Args:
        eta: 0 adds no noise, 1 as much as the ancestral sampler.

    Source: Song et al. 2021 (arXiv:2010.02502), equation 12, for any alpha and sigma.
    """

    def __init__(self, *, eta: NonNegativeFloat = 0.0) -> None:
        self.eta = eta

    def walk(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Stage]:
        """See `Sampler`."""
        for k in range(grid.steps):
            x0 = denoise(x, grid.times[k]).x0
            fresh = min(self.eta * math.sqrt(max(0.0, 1 - grid.decay(k) ** 2)), 1.0) * grid.sigmas[k + 1]
            x = drift(x, x0, grid, k, fresh)
            if fresh > 0:
                x = x + fresh * noise(k)
            yield Stage(x, x0)


def encode(denoise: Denoiser, x: Tensor, grid: Grid) -> Tensor:
    """The noise at the grid's first level from which DDIM without noise leads to `x`, up to the error of its steps.

    Args:
        denoise: says what data are in noisy samples.
        x: samples at the grid's last level, (B, ...): data, if it is clean.
        grid: levels, noisiest first; it is walked upwards.

    Source: Dhariwal and Nichol 2021 (arXiv:2105.05233), appendix F: the same ordinary differential equation, backwards.
    """
    for k in reversed(range(grid.steps)):
        alpha, sigma = grid.alphas[k + 1], grid.sigmas[k + 1]
        if sigma == 0:  # nothing to see in clean data: taken as they are for samples of the first level with noise
            x = grid.alphas[k] / alpha * x
            continue
        x0 = denoise(x, grid.times[k + 1]).x0
        x = grid.alphas[k] * x0 + grid.sigmas[k] / sigma * (x - alpha * x0)
    return x
