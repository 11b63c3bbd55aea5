"""Sampling from consistency models."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.processes import Grid
from dlas.diffusion.samplers.base import Noise, Sampler, Stage
from dlas.registry import SAMPLERS
from dlas.types import NonNegativeFloat


@SAMPLERS.register("consistency")
class Consistency(Sampler):
    """For networks that give a sample in one call: one step, or a few with all noise drawn anew between them.

    Args:
        sigma_min: sigma / alpha that is left in what the network gives, as it was trained.

    Source: Song et al. 2023 (arXiv:2303.01469), algorithm 1.
    """

    def __init__(self, *, sigma_min: NonNegativeFloat = 0.002) -> None:
        self.sigma_min = sigma_min

    def walk(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Stage]:
        """See `Sampler`."""
        for k in range(grid.steps):
            x0 = denoise(x, grid.times[k]).x0
            alpha, sigma = grid.alphas[k + 1], grid.sigmas[k + 1]
            fresh = math.sqrt(max(0.0, sigma**2 - (alpha * self.sigma_min) ** 2))
            x = alpha * x0
            if fresh > 0:
                x = x + fresh * noise(k)
            yield Stage(x, x0)
