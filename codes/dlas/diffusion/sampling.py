"""From seeds to samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dlas.context import Context
from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.processes import Process
from dlas.diffusion.samplers.base import Noise, Sampler
from dlas.diffusion.spacing import Spacing, spaced

START = -1
"""The number of the noise that a chain starts from."""


class Sampled(NamedTuple):
    """Samples.

    Attributes:
        x: the samples, (B, ...).
        strip: what the network saw in them on the way, the samples themselves last: (B, stages, ...); None where not asked for.
    """

    x: Tensor
    strip: Tensor | None


@torch.no_grad()
def sample(
    denoise: Denoiser,
    process: Process,
    sampler: Sampler,
    noise: Noise,
    *,
    steps: int,
    spacing: Spacing = "own",
    rho: float = 7.0,
    stages: int = 0,
) -> Sampled:
    """Draws samples.

    Args:
        denoise: says what data are in noisy samples.
        process: what times mean.
        sampler: walks from noise to data.
        noise: of the samples, see `seeded_noise`; noise number `START` is what they begin as. Its shape is theirs.
        steps: of the sampler.
        spacing: how its times are spread.
        rho: of spacing karras.
        stages: pictures of a denoising strip, evenly spaced over the steps; 0 keeps none.

    Raises:
        ConfigurationError: the process has fewer timesteps than steps.
    """
    times = sampler.times(process, steps) if spacing == "own" else spaced(process, steps, spacing, rho)
    grid = process.grid(times)
    x = grid.sigmas[0] * noise(START)
    kept = {round((k + 1) * steps / stages) - 1: k for k in range(stages)}
    strip: list[Tensor] = []
    for k, stage in enumerate(sampler.walk(denoise, x, grid, noise)):
        x = stage.x
        if k in kept:
            strip.append(stage.x0 if k + 1 < steps else x)
    return Sampled(x, torch.stack(strip, dim=1) if strip else None)


def seeded_noise(
    seed: int, positions: Sequence[int], shape: Sequence[int], *, device: torch.device | str = "cpu", stream: str = "sample"
) -> Noise:
    """Noise that depends on seed, the sample's number and the step alone: the same however samples are cut into batches.

    Args:
        seed: of all samples.
        positions: a number for each sample of the batch.
        shape: of one sample.
        device: of the noise; another kind of device gives other numbers.
        stream: keeps apart chains of the same samples.
    """
    context = Context({}, seed=seed, positions=positions)
    return lambda k: context.randn(shape, f"{stream} {k}", device)
