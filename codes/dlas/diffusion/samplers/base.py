"""What a sampler is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.processes import Grid, Process
from dlas.registry import SAMPLERS

Noise: TypeAlias = Callable[[int], Tensor]
"""Gives the k-th noise of a chain, standard normal, of the samples' shape: the same k gives the same noise."""


class Stage(NamedTuple):
    """Where a chain is.

    Attributes:
        x: the samples, (B, ...), float32.
        x0: the data that the network last saw in them.
    """

    x: Tensor
    x0: Tensor


class Sampler(ABC):
    """Walks down a grid of noise levels. Coefficients are computed on the host, in float64; nothing waits for the device."""

    @abstractmethod
    def walk(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Iterator[Stage]:
        """The chain, one stage after each of the grid's steps.

        Args:
            denoise: says what data are in noisy samples.
            x: samples at the grid's first level, (B, ...); pure noise is the grid's first sigma times standard normal noise.
            grid: levels, noisiest first.
            noise: of the samples, for samplers that add some.
        """

    def times(self, process: Process, count: int) -> list[float]:
        """The times that this sampler asks at by default: the process's own spacing."""
        return process.spaced(count)

    def run(self, denoise: Denoiser, x: Tensor, grid: Grid, noise: Noise) -> Tensor:
        """The end of the chain; arguments as of `walk`."""
        for stage in self.walk(denoise, x, grid, noise):
            x = stage.x
        return x


def drift(x: Tensor, x0: Tensor, grid: Grid, k: int, fresh: float = 0.0) -> Tensor:
    """Where the k-th step leads before its noise is added: alpha' x0 + sqrt(sigma'^2 - fresh^2) eps.

    Every sampler here makes such steps; they differ in what they take for `x0` and in how much noise is fresh. It is exact if
    x0 is the data in `x`, from pure noise and to a clean sample, too.

    Args:
        x: samples at the k-th level, whose sigma is positive, (B, ...).
        x0: the data in them; eps is the noise that is left.
        grid: levels.
        k: number of the step.
        fresh: standard deviation of the noise that will be added.
    """
    kept = math.sqrt(max(0.0, grid.sigmas[k + 1] ** 2 - fresh**2)) / grid.sigmas[k]
    return kept * x + (grid.alphas[k + 1] - kept * grid.alphas[k]) * x0


def create_sampler(options: Mapping[str, Any]) -> Sampler:
    """The sampler that a `sampler:` entry describes: `type`, a name registered under SAMPLERS, and its options.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    sampler: Sampler = SAMPLERS.create(*SAMPLERS.named(options))
    return sampler
