"""Processes: what a time means. Each maps times to noise levels, and says what a network is told and shown at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dlas.diffusion.levels import Level
from dlas.diffusion.schedules import alpha_bars, rescale_to_zero_terminal_snr
from dlas.diffusion.tables import Table, on_host
from dlas.errors import ConfigurationError
from dlas.registry import PROCESSES
from dlas.types import PositiveFloat, PositiveInt


class Grid(NamedTuple):
    """Times at which a sampler asks the network, noisiest first, and their levels as numbers of the host.

    Attributes:
        times: n + 1 of them; at the last one the sample is done and the network is not asked.
        alphas: factors of the data.
        sigmas: factors of the noise; the last is 0 for a clean sample.
        process: what the times mean, for samplers that leave the grid.
    """

    times: tuple[float, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    process: Process

    @property
    def steps(self) -> int:
        """How many steps lie between the times."""
        return len(self.times) - 1

    def ratio(self, k: int) -> float:
        """sigma / alpha at the k-th time; infinite without signal."""
        return math.inf if self.alphas[k] == 0 else self.sigmas[k] / self.alphas[k]

    def decay(self, k: int) -> float:
        """By what the k-th step multiplies sigma / alpha: from 0, to a clean sample or from pure noise, to 1."""
        return self.alphas[k] * self.sigmas[k + 1] / (self.sigmas[k] * self.alphas[k + 1])


class Process(ABC):
    """A family of noise levels by time.

    Attributes:
        sigma_data: standard deviation of the data that preconditioning assumes.
        discrete: whether times are the integers 0 .. `steps` - 1.
        steps: how many of them; 0 for continuous times.
    """

    sigma_data: float = 1.0
    discrete: bool = False
    steps: int = 0

    @abstractmethod
    def level(self, times: Tensor) -> Level:
        """Levels (B,), float64, of times (B,)."""

    @abstractmethod
    def time_of(self, quantile: Tensor) -> Tensor:
        """Times (B,) of numbers in [0, 1): the process's own spread of noise levels, from little noise to much."""

    @abstractmethod
    def at_ratio(self, ratio: Tensor) -> Tensor:
        """Times (B,) at which sigma / alpha is `ratio` (B,) > 0; the nearest timesteps where time is discrete."""

    @abstractmethod
    def spaced(self, count: int) -> list[float]:
        """`count` times from the noisiest down, spread as is usual for this process; the clean end is left out."""

    def conditioning(self, times: Tensor) -> Tensor:
        """What the network is told of times (B,): float32, (B,)."""
        return times.float()

    def input_factor(self, level: Level) -> Tensor | None:
        """What the network's input is multiplied by; None for 1."""
        return None

    @property
    def first_ratio(self) -> float:
        """sigma / alpha where sampling begins; may be infinite."""
        return self.grid(self.spaced(1)).ratio(0)

    def grid(self, times: Sequence[float], end: float | None = None) -> Grid:
        """Times of a sampler, with their levels.

        Args:
            times: noisiest first.
            end: the time after the last; by default no noise is left there.
        """
        asked = [*times] if end is None else [*times, end]
        with on_host():
            level = self.level(torch.tensor(asked, dtype=torch.float64))
            alphas, sigmas = level.alpha.tolist(), level.sigma.tolist()
        if end is None:  # a clean sample; it belongs to no time of a discrete process
            asked, alphas, sigmas = [*asked, math.nan], [*alphas, 1.0], [*sigmas, 0.0]
        return Grid(tuple(asked), tuple(alphas), tuple(sigmas), self)


class Timesteps(Process):
    """Integer timesteps, each with its share of the data's variance; alpha^2 + sigma^2 = 1.

    Args:
        alpha_bars: alpha^2 of each timestep, (T,), float64.
        scale: the network is told t times this.
        sigma_data: standard deviation of the data.
    """

    discrete = True

    def __init__(self, alpha_bars: Tensor, scale: float, sigma_data: float) -> None:
        self.alpha_bars = alpha_bars
        self._table = Table(alpha_bars)
        self.steps = len(alpha_bars)
        self.scale = scale
        self.sigma_data = sigma_data

    def level(self, times: Tensor) -> Level:
        """Levels of integer timesteps, also given as floating-point numbers."""
        bars = self._table.on(times.device)[times.long()]
        return Level(bars.sqrt(), (1 - bars).sqrt())

    def time_of(self, quantile: Tensor) -> Tensor:
        """Integer timesteps, int64, all alike likely."""
        return (quantile.double() * self.steps).long().clamp_(0, self.steps - 1)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        """The timesteps whose ln(sigma / alpha) is nearest."""
        bars = self._table.on(ratio.device)
        own = ((1 - bars) / bars).log() / 2  # grows with the timestep; infinite where there is no signal
        wanted = ratio.double().log()
        after = torch.searchsorted(own, wanted).clamp_(1, self.steps - 1)
        return torch.where(wanted - own[after - 1] <= own[after] - wanted, after - 1, after)

    def spaced(self, count: int) -> list[float]:
        """Trailing: `count` timesteps, equally far apart, the last timestep included (Lin et al. 2023, table 2)."""
        if count > self.steps:
            raise ConfigurationError(f"{count} sampling steps were asked for, but the process has {self.steps} timesteps")
        return [round(self.steps - k * self.steps / count) - 1 for k in range(count)]

    def conditioning(self, times: Tensor) -> Tensor:
        """t times `scale`."""
        return times.float() * self.scale


@PROCESSES.register("vp")
class VariancePreserving(Timesteps):
    """DDPM's: integer timesteps, alpha^2 + sigma^2 = 1.

    Args:
        schedule: how noise grows. linear: of Ho et al. 2020; scaled_linear: of latent diffusion (Rombach et al. 2022), Stable
            Diffusion's; cosine: of Nichol and Dhariwal 2021 (arXiv:2102.09672).
        steps: timesteps T.
        zero_terminal_snr: rescale so that the last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1); the
            network must not predict eps then.
        rescale_timesteps: tell the network t * 1000 / T in place of t.
        sigma_data: standard deviation of the data, for `prediction: edm` and for weightings that ask for it.
    """

    def __init__(
        self,
        *,
        schedule: Literal["linear", "scaled_linear", "cosine"] = "linear",
        steps: PositiveInt = 1000,
        zero_terminal_snr: bool = False,
        rescale_timesteps: bool = False,
        sigma_data: PositiveFloat = 1.0,
    ) -> None:
        bars = alpha_bars(schedule, steps)
        scale = 1000.0 / steps if rescale_timesteps else 1.0
        super().__init__(rescale_to_zero_terminal_snr(bars) if zero_terminal_snr else bars, scale, sigma_data)


@PROCESSES.register("edm")
class VarianceExploding(Process):
    """EDM's: the time is the standard deviation of the noise, alpha = 1.

    Args:
        sigma_min: smallest noise of the sampler's grid.
        sigma_max: noise at which sampling begins.
        rho: bends the sampler's grid; 7 spends most steps at little noise.
        sigma_data: standard deviation of the data.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1 and equation 5.
    """

    def __init__(
        self,
        *,
        sigma_min: PositiveFloat = 0.002,
        sigma_max: PositiveFloat = 80.0,
        rho: PositiveFloat = 7.0,
        sigma_data: PositiveFloat = 0.5,
    ) -> None:
        if sigma_min >= sigma_max:
            raise ConfigurationError(f"edm: sigma_min {sigma_min} must be less than sigma_max {sigma_max}")
        self.sigma_min, self.sigma_max, self.rho, self.sigma_data = sigma_min, sigma_max, rho, sigma_data

    def level(self, times: Tensor) -> Level:
        """(1, sigma)."""
        return Level(torch.ones_like(times, dtype=torch.float64), times.double())

    def time_of(self, quantile: Tensor) -> Tensor:
        """Log-uniform between the grid's ends; training draws its levels from a log-normal instead (`times: log_normal`)."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** quantile.double()

    def at_ratio(self, ratio: Tensor) -> Tensor:
        """The ratio itself."""
        return ratio.double()

    def spaced(self, count: int) -> list[float]:
        """Equation 5: equal steps in sigma^(1 / rho)."""
        if count == 1:
            return [self.sigma_max]
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(high + k / (count - 1) * (low - high)) ** self.rho for k in range(count)]

    def conditioning(self, times: Tensor) -> Tensor:
        """c_noise = ln(sigma) / 4."""
        return (times.double().log() / 4).float()

    def input_factor(self, level: Level) -> Tensor | None:
        """c_in: gives the network's input unit variance."""
        return (level.sigma.square() + self.sigma_data**2).rsqrt()


@PROCESSES.register("flow")
class Flow(Process):
    """Flow matching on straight lines: alpha = 1 - t, sigma = t; t = 1 is noise.

    Args:
        shift: k of t' = k t / (1 + (k - 1) t), for larger pictures: moves training and sampling towards more noise.
        time_scale: the network is told t times this.
        sigma_data: standard deviation of the data, for `prediction: edm` and for weightings that ask for it.

    Source: Liu et al. 2022 (arXiv:2209.03003); the shift: Esser et al. 2024 (arXiv:2403.03206), equation 23.
    """

    def __init__(
        self, *, shift: PositiveFloat = 1.0, time_scale: PositiveFloat = 1000.0, sigma_data: PositiveFloat = 1.0
    ) -> None:
        self.shift, self.time_scale, self.sigma_data = shift, time_scale, sigma_data

    def level(self, times: Tensor) -> Level:
        """(1 - t, t)."""
        return Level(1 - times.double(), times.double())

    def time_of(self, quantile: Tensor) -> Tensor:
        """Uniform in t, shifted."""
        t = quantile.double()
        return self.shift * t / (1 + (self.shift - 1) * t)

    def at_ratio(self, ratio: Tensor) -> Tensor:
        """t = r / (1 + r)."""
        return ratio.double() / (1 + ratio.double())

    def spaced(self, count: int) -> list[float]:
        """Equal steps in t, shifted."""
        with on_host():
            return self.time_of(torch.linspace(1, 0, count + 1, dtype=torch.float64)[:-1]).tolist()

    def conditioning(self, times: Tensor) -> Tensor:
        """t times `time_scale`."""
        return (times.double() * self.time_scale).float()


def create_process(options: Mapping[str, Any]) -> Process:
    """The process that a `process:` entry describes.

    Args:
        options: `type`, a name registered under PROCESSES, and its options.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    with on_host():
        process: Process = PROCESSES.create(*PROCESSES.named(options))
    return process
