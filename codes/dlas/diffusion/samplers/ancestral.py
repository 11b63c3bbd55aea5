"""The ancestral sampler of DDPM."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from dlas.diffusion.denoising import Denoised, Denoiser
from dlas.diffusion.processes import Grid
from dlas.diffusion.samplers.base import Noise, Sampler, Stage, drift
from dlas.registry import SAMPLERS


@SAMPLERS.register("ancestral", "ddpm")
class Ancestral(Sampler):
    """Draws from the posterior of the next level, given the data that the network sees; needs many steps.

    Between levels (alpha, sigma) and (alpha', sigma'), with a = alpha / alpha' and beta = sigma^2 - (a sigma')^2::

        mean = a sigma'^2 / sigma^2 x + alpha' beta / sigma^2 x0,     beta_posterior = beta sigma'^2 / sigma^2

    Args:
        variance: of a step. fixed_small: beta_posterior; fixed_large: beta; learned: the network gives its logarithm;
            learned_range: the network says where between the logarithms of the two it is. By default learned_range where the
            network learns it, else fixed_small.

    Source: Ho et al. 2020 (arXiv:2006.11239), equations 6 and 7; learned variance: Nichol and Dhariwal 2021 (arXiv:2102.09672),
    equation 15.
    """

    def __init__(self, *, variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] | None = None) -> None:
        self.variance = variance

    def walk(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Stage]:
        """See `Sampler`."""
        for k in range(grid.steps):
            seen = denoise(x, grid.times[k])
            x = self.step(seen, x, grid, k, noise)
            yield Stage(x, seen.x0)

    def step(self, seen: Denoised, x: Tensor, grid: Grid, k: int, noise: Noise) -> Tensor:
        """Samples after the k-th step; `seen` is what the network sees in `x`."""
        posterior, _ = variances(grid, k)
        deviation = self.deviation(seen, grid, k)
        if seen.classified is None:
            x = drift(x, seen.x0, grid, k, math.sqrt(posterior))
        else:  # moved by variance times gradient, as in algorithm 1 of Dhariwal and Nichol 2021 (arXiv:2105.05233)
            x = drift(x, seen.classified.x0, grid, k, math.sqrt(posterior)) + deviation**2 * seen.classified.gradient
        return x + deviation * noise(k) if grid.sigmas[k + 1] > 0 else x

    def deviation(self, seen: Denoised, grid: Grid, k: int) -> Tensor | float:
        """Standard deviation of the k-th step, (B, ...), or a number. To a clean sample, where it is 0, guidance needs another.

        Raises:
            ValueError: it is to be learned, but the network gives none.
        """
        kind = self.variance or ("fixed_small" if seen.variance is None else "learned_range")
        small, large = variances(grid, k)
        if kind == "fixed_small":
            return math.sqrt(small)
        clean = grid.sigmas[k + 1] == 0
        if clean:  # the posterior has no logarithm: that of the step before
            small = variances(grid, k - 1)[0] if k > 0 else large
        if kind == "fixed_large":
            return math.sqrt(small if clean else large)
        if seen.variance is None:
            raise ValueError(f"ancestral: variance {kind} needs a network that learns it; take fixed_small or fixed_large")
        if kind == "learned":
            return (seen.variance / 2).exp()
        low, high = math.log(small) / 2, math.log(large) / 2
        return (low + (high - low) * (seen.variance + 1) / 2).exp()


def variances(grid: Grid, k: int) -> tuple[float, float]:
    """beta_posterior and beta of the k-th step."""
    beta = grid.sigmas[k] ** 2 * (1 - grid.decay(k) ** 2)
    return beta * (grid.sigmas[k + 1] / grid.sigmas[k]) ** 2, beta
