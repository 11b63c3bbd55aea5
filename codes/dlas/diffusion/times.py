"""Distributions of times: at which noise levels a diffusion is trained, and how often."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlas.diffusion.processes import Process
from dlas.errors import ConfigurationError
from dlas.ranks import gather
from dlas.registry import TIMES
from dlas.types import NonNegativeFloat, PositiveFloat, PositiveInt, TimesOptions


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
            uniform: (B,) in [0, 1), one of each sample; evenly spread numbers give evenly spread times, larger ones more noise.
            step: completed optimiser steps.
        """

    def observe(self, times: Tensor, losses: Tensor) -> None:  # noqa: B027 (most have nothing to learn)
        """Takes the unweighted losses (B,) at times (B,), for distributions that follow them; must not wait for the device.

        Where several processes train one model, each must be given the times and losses of all, in the same order.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned of the losses, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (most have nothing to restore)
        """Takes what `state_dict` gave."""


@TIMES.register("uniform")
class Uniform(Times):
    """The process's own spread: all timesteps alike (vp), t uniform and shifted (flow), ln sigma uniform (edm)."""

    def __init__(self) -> None: ...

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`."""
        return Drawn(process.time_of(uniform))


@TIMES.register("log_normal")
class LogNormal(Times):
    """ln(sigma / alpha) is normal; for processes with timesteps, the nearest one.

    Args:
        mean: of the logarithm.
        std: standard deviation of the logarithm.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1; -0.4 and 1.0 for latents: Karras et al. 2024 (arXiv:2312.02696).
    """

    def __init__(self, *, mean: float = -1.2, std: PositiveFloat = 1.2) -> None:
        self.mean, self.std = mean, std

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`."""
        return Drawn(process.at_ratio(torch.exp(self.mean + self.std * _normal(uniform))))


@TIMES.register("logit_normal")
class LogitNormal(Times):
    """The place in the process's own spread is the logistic function of a normal number: most often in the middle.

    For `flow`, that place is t before its `shift`.

    Args:
        mean: of the normal number; less than 0 trains more often with little noise.
        std: its standard deviation.

    Source: Esser et al. 2024 (arXiv:2403.03206), equation 19.
    """

    def __init__(self, *, mean: float = 0.0, std: PositiveFloat = 1.0) -> None:
        self.mean, self.std = mean, std

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`."""
        return Drawn(process.time_of(torch.sigmoid(self.mean + self.std * _normal(uniform))))


@TIMES.register("mode")
class Mode(Times):
    """The place in the process's own spread has a density with a mode in the middle and positive ends.

    Args:
        scale: how strong the mode is, at most 2 / (pi - 2) = 1.75; 0 is even.

    Source: Esser et al. 2024 (arXiv:2403.03206), equation 20.
    """

    def __init__(self, *, scale: NonNegativeFloat = 1.29) -> None:
        if scale > 2 / (math.pi - 2):
            raise ConfigurationError(f"mode: scale {scale} must be at most 2 / (pi - 2) = 1.75, or times are not unique")
        self.scale = scale

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`."""
        u = uniform.double()
        moved = u - self.scale * (torch.sin(u * (math.pi / 2)).square() - u)  # the paper's, with its u running from 1 to 0
        return Drawn(process.time_of(moved.clamp(0, 1)))


@TIMES.register("cosmap")
class CosMap(Times):
    """The place in the process's own spread by which `flow` has the signal-to-noise ratios of a cosine schedule.

    Source: Esser et al. 2024 (arXiv:2403.03206), equation 21.
    """

    def __init__(self) -> None: ...

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`."""
        angle = uniform.double() * (math.pi / 2)
        return Drawn(process.time_of(torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))))


@TIMES.register("curriculum")
class Curriculum(Times):
    """From easy to difficult: first the noisiest levels only, then less noisy ones, too, in equal steps.

    Args:
        until: optimiser steps after which all levels are drawn.
        stages: how many ranges there are: in stage k of n, the noisiest k / n of the distribution are drawn from.
        of: the distribution whose noisiest part is drawn from; by default `uniform`.

    Source: Kim et al. 2024 (arXiv:2403.10348): the less noise, the more difficult; there, a loss that has settled
    ends a stage.
    """

    def __init__(self, *, until: PositiveInt, stages: PositiveInt = 20, of: TimesOptions | None = None) -> None:
        self.until, self.stages = until, stages
        self.distribution = create_times(of or {"type": "uniform"})

    def share(self, step: int) -> float:
        """Which part of the distribution is drawn from after `step` optimiser steps, counted from its noisy end."""
        return min(1 + step * (self.stages - 1) // self.until, self.stages) / self.stages

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`."""
        return self.distribution.draw(process, 1 - self.share(step) * (1 - uniform.double()), step)

    def observe(self, times: Tensor, losses: Tensor) -> None:
        """See `Times`."""
        self.distribution.observe(times, losses)

    def state_dict(self) -> dict[str, Tensor]:
        """That of the distribution."""
        return self.distribution.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Times`."""
        self.distribution.load_state_dict(state)


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers, float64, of uniform ones; an exact 0 or 1 is 8.2 standard deviations away."""
    return torch.special.ndtri(uniform.double().clamp(1e-16, 1 - 1.2e-16))


class Observations:
    """Keeps what an iteration's micro-batches tell of losses, and gives it to the distribution when the next one begins.

    So times do not depend on how a batch is cut or spread over processes, and micro-batches that are tried again, smaller,
    count once. All processes must settle together.

    Args:
        times: the distribution that follows the losses.
    """

    def __init__(self, times: Times) -> None:
        self.times = times
        self._step = -1
        self._waiting: list[tuple[frozenset[int], Tensor, Tensor]] = []

    def add(self, step: int, positions: Sequence[int], times: Tensor, losses: Tensor) -> None:
        """Takes losses (B,) at times (B,) of samples at `positions`, after `step` completed iterations."""
        self.settle(step)
        own = frozenset(positions)
        self._waiting = [each for each in self._waiting if own.isdisjoint(each[0])]
        self._waiting.append((own, times, losses.detach()))

    def settle(self, step: int | None = None) -> None:
        """Gives the distribution what belongs to other iterations than `step`; without one, everything."""
        if self._waiting and step != self._step:
            _, times, losses = zip(*self._waiting, strict=True)
            self.times.observe(gather(torch.cat(times)), gather(torch.cat(losses)))
            self._waiting = []
        self._step = -1 if step is None else step

    def state_dict(self) -> dict[str, Tensor]:
        """That of the distribution, with all that was told."""
        self.settle()
        return self.times.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave."""
        self._waiting = []
        self.times.load_state_dict(state)


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
    times: Times = TIMES.create(*TIMES.named(options))
    return times
