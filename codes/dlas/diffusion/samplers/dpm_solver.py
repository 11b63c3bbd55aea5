"""DPM-Solver++."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.processes import Grid
from dlas.diffusion.samplers.base import Noise, Sampler, Stage, drift
from dlas.registry import SAMPLERS
from dlas.types import NonNegativeFloat


@SAMPLERS.register("dpm_solver", "dpmpp_2m")
class DPMSolver(Sampler):
    """DPM-Solver++ 2M: second order for one call of the network a step.

    Steps of infinite length in ln(alpha / sigma), from pure noise and to a clean sample, are of first order, and so are the
    first step and the one after pure noise, which have no usable step before them.

    Args:
        eta: 0 solves the ordinary differential equation, 1 the stochastic one (SDE-DPM-Solver++ 2M).

    Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2, and appendix for the stochastic equation.
    """

    def __init__(self, *, eta: NonNegativeFloat = 0.0) -> None:
        self.eta = eta

    def walk(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Stage]:
        """See `Sampler`."""
        before: Tensor | None = None
        for k in range(grid.steps):
            x0 = denoise(x, grid.times[k]).x0
            ahead = x0
            if before is not None:
                step, step_before = length(grid, k), length(grid, k - 1)
                if math.isfinite(step) and math.isfinite(step_before):
                    ahead = x0 + step / (2 * step_before) * (x0 - before)
            fresh = math.sqrt(1 - grid.decay(k) ** (2 * self.eta)) * grid.sigmas[k + 1]
            x = drift(x, ahead, grid, k, fresh)
            if fresh > 0:
                x = x + fresh * noise(k)
            before = x0
            yield Stage(x, x0)


def length(grid: Grid, k: int) -> float:
    """Length of the k-th step in ln(alpha / sigma)."""
    decay = grid.decay(k)
    return -math.log(decay) if decay > 0 else math.inf
