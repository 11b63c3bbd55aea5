"""Distributions of times: at which noise levels a diffusion is trained, and how often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlas.diffusion.processes import Process
from dlas.errors import ConfigurationError
from dlas.registry import TIMES


class Drawn(NamedTuple):
    """Times of samples.

    Attributes:
        times: (B,), in the process's own unit.
        weights: (B,), float64; losses are multiplied by them so that their expectation is that of evenly drawn times. None: 1.
    """

    times: Tensor
    weights: Tensor | None = None


class Times(ABC):
    """Draws times of a process."""

    @abstractmethod
    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """Times for uniform numbers.

        Args:
            process: what times mean.
            uniform: (B,) in [0, 1), one of each sample; evenly spread numbers give evenly spread times.
            step: completed optimiser steps.
        """

    def observe(self, times: Tensor, losses: Tensor) -> None:  # noqa: B027 (most have nothing to learn)
        """Takes the unweighted losses (B,) at times (B,), for distributions that follow them; must not wait for the device."""


@TIMES.register("uniform")
class Uniform(Times):
    """The process's own spread: all timesteps alike (vp), t uniform and shifted (flow), ln sigma uniform (edm)."""

    def __init__(self) -> None: ...

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`."""
        return Drawn(process.time_of(uniform))


def low_discrepancy(positions: Tensor, offset: float) -> Tensor:
    """Numbers in [0, 1) of samples by their place in the run: any stretch of neighbours is spread evenly.

    The additive recurrence of the golden ratio: of n neighbours, the gaps differ by a factor of 2.6 at most, whatever n is and
    wherever they begin. So levels are stratified over a batch, whatever its micro-batches and ranks.

    Args:
        positions: (B,), int64.
        offset: in [0, 1), of the run.

    Source: Weyl, "Über die Gleichverteilung von Zahlen mod. Eins", 1916; the gaps: Swierczkowski 1958 (three-distance theorem).
    """
    golden = 0.6180339887498949
    return torch.remainder(positions.double() * golden + offset, 1.0)


def create_times(options: Mapping[str, Any]) -> Times:
    """The distribution that a `times:` entry describes: `type`, a name registered under TIMES, and its options.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    settings = dict(options)
    if "type" not in settings:
        raise ConfigurationError(f"times need a type, one of: {', '.join(TIMES.entries())}; given: {settings}")
    times: Times = TIMES.create(settings.pop("type"), settings)
    return times
