"""Mixtures of normal distributions: what the best denoiser sees, and where the probability flow leads, in closed form.

Data are products of one-dimensional mixtures, turned by a rotation. One dimension is followed exactly: the flow keeps the order
of samples, so that it carries each quantile of one noise level to the same quantile of the other. Rotations commute with noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dlas.diffusion import Denoised, Level, Prediction, Process, target


class Axis(NamedTuple):
    """A mixture in one dimension."""

    weights: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float]


@dataclass(frozen=True)
class Mixture:
    """The product of `axes`, turned by `angle` if there are two."""

    axes: Sequence[Axis]
    angle: float = 0.0

    @property
    def rotation(self) -> Tensor:
        if len(self.axes) == 1:
            return torch.ones(1, 1, dtype=torch.float64)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples, (count, axes)."""
        columns = []
        for axis in self.axes:
            weights, means, deviations = _tensors(axis, torch.float64)
            chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
            noise = torch.randn(count, dtype=torch.float64, generator=generator)
            columns.append(means[chosen] + deviations[chosen] * noise)
        return torch.stack(columns, 1) @ self.rotation.T

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        """E[x0 | x], the type of `x`; (B, axes) and levels that broadcast with it."""
        turn = self.rotation.to(x.dtype)
        y = x @ turn
        seen = [_posterior_mean(axis, y[:, i : i + 1], level) for i, axis in enumerate(self.axes)]
        return torch.cat(seen, 1) @ turn.T

    def transport(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        """Where the probability flow leads from one level (alpha, sigma) to another: (B, axes), float64."""
        y = x @ self.rotation
        moved = [_inverse(axis, _cumulative(axis, y[:, i], *start), *end) for i, axis in enumerate(self.axes)]
        return torch.stack(moved, 1) @ self.rotation.T

    def cumulative(self, x: Tensor, axis: int) -> Tensor:
        """Share of the data below the samples' places along an axis, (B,)."""
        return _cumulative(self.axes[axis], (x.double() @ self.rotation)[:, axis], 1.0, 0.0)

    def denoiser(self, process: Process) -> Callable[[Tensor, float], Denoised]:
        """The best denoiser of a process."""

        def denoise(x: Tensor, time: float) -> Denoised:
            level = process.level(torch.full((len(x),), time, dtype=torch.float64)).like(x)
            return Denoised(self.denoise(x, level))

        return denoise

    def network(self, process: Process, kind: Prediction) -> Callable[[Tensor, Tensor], Tensor]:
        """The best network of a process for a kind of prediction; to be told times in the process's own unit."""

        def network(shown: Tensor, times: Tensor) -> Tensor:
            level = process.level(times).like(shown)
            factor = process.input_factor(level)
            x = shown if factor is None else shown / factor
            x0 = self.denoise(x, level)
            return target(kind, x0, (x - level.alpha * x0) / level.sigma, level, process.sigma_data)

        return network


ONE = Mixture([Axis((0.3, 0.5, 0.2), (-0.9, 0.1, 0.8), (0.25, 0.2, 0.3))])
TWO = Mixture([ONE.axes[0], Axis((0.6, 0.4), (-0.4, 0.6), (0.35, 0.25))], angle=0.5)


@lru_cache
def _tensors(axis: Axis, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    weights, means, deviations = (torch.tensor(each, dtype=dtype) for each in axis)
    return weights, means, deviations


def _posterior_mean(axis: Axis, x: Tensor, level: Level) -> Tensor:
    weights, means, deviations = _tensors(axis, x.dtype)
    variances = (level.alpha * deviations).square() + level.sigma.square()
    off = x - level.alpha * means
    logits = weights.log() - variances.log() / 2 - off.square() / (2 * variances)
    shares = (logits - logits.amax(1, keepdim=True)).exp()
    seen = means + level.alpha * deviations.square() / variances * off
    return (shares * seen).sum(1, keepdim=True) / shares.sum(1, keepdim=True)


def _cumulative(axis: Axis, x: Tensor, alpha: float, sigma: float) -> Tensor:
    weights, means, deviations = _tensors(axis, torch.float64)
    variances = (alpha * deviations).square() + sigma**2
    return (weights * torch.special.ndtr((x[:, None] - alpha * means) / variances.sqrt())).sum(1)


def _inverse(axis: Axis, share: Tensor, alpha: float, sigma: float) -> Tensor:
    reach = 12 * (alpha * (1 + max(axis.deviations)) + sigma)
    low, high = torch.full_like(share, -reach), torch.full_like(share, reach)
    for _ in range(80):
        middle = (low + high) / 2
        below = _cumulative(axis, middle, alpha, sigma) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
