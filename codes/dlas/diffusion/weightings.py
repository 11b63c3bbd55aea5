"""Weightings: how much the squared error of a prediction counts at a noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlas.diffusion.levels import Level, Prediction, error_factor
from dlas.registry import WEIGHTINGS
from dlas.types import NonNegativeFloat, PositiveFloat


class Weighting(ABC):
    """Factors of the squared error of what a network predicts."""

    @abstractmethod
    def __call__(self, level: Level, prediction: Prediction, sigma_data: float) -> Tensor:
        """Factors (B,), float64, finite.

        Args:
            level: noise levels (B,), float64; alpha may be 0 (no signal is left), sigma is positive.
            prediction: what the network predicts, whose squared error is multiplied.
            sigma_data: standard deviation of the data.
        """


@WEIGHTINGS.register("uniform")
class Uniform(Weighting):
    """Every level counts alike, in terms of what is predicted: for eps, Ho et al. 2020 (arXiv:2006.11239), equation 14."""

    def __init__(self) -> None: ...

    def __call__(self, level: Level, prediction: Prediction, sigma_data: float) -> Tensor:
        """Ones."""
        return torch.ones_like(level.sigma)


class _OfData(Weighting):
    """A weighting that is defined by what the squared error of the data, x0, counts.

    Args:
        without_signal: factor where the signal-to-noise ratio is 0, for every kind of prediction.
    """

    def __init__(self, without_signal: float) -> None:
        self.without_signal = without_signal

    @abstractmethod
    def of_data(self, snr: Tensor, sigma_data: float) -> Tensor:
        """Factors (B,) of the squared error of x0 at signal-to-noise ratios (B,)."""

    def __call__(self, level: Level, prediction: Prediction, sigma_data: float) -> Tensor:
        """See `Weighting`."""
        factors = self.of_data(level.snr, sigma_data) * error_factor(prediction, level, sigma_data).square()
        return torch.where(level.alpha == 0, torch.full_like(factors, self.without_signal), factors)


@WEIGHTINGS.register("min_snr")
class MinSNR(_OfData):
    """The error of x0 counts min(SNR, gamma): timesteps with little noise are no more important than gamma.

    Args:
        gamma: where the signal-to-noise ratio is cut off.
        without_signal: factor where no signal is left (the last timestep with zero terminal SNR); by the formula that timestep
            would count 0 for every prediction but eps, and never be trained.

    Source: Hang et al. 2023 (arXiv:2303.09556).
    """

    def __init__(self, *, gamma: PositiveFloat = 5.0, without_signal: NonNegativeFloat = 1.0) -> None:
        super().__init__(without_signal)
        self.gamma = gamma

    def of_data(self, snr: Tensor, sigma_data: float) -> Tensor:
        """min(SNR, gamma)."""
        return snr.clamp(max=self.gamma)


@WEIGHTINGS.register("soft_min_snr")
class SoftMinSNR(_OfData):
    """The error of x0 counts gamma SNR / (SNR + gamma): like `min_snr`, without its corner.

    Args:
        gamma: what the weight tends to where there is little noise; by default 1 / sigma_data^2.
        without_signal: factor where no signal is left, as of `min_snr`.

    Source: Crowson et al. 2024 (arXiv:2401.11605).
    """

    def __init__(self, *, gamma: PositiveFloat | None = None, without_signal: NonNegativeFloat = 1.0) -> None:
        super().__init__(without_signal)
        self.gamma = gamma

    def of_data(self, snr: Tensor, sigma_data: float) -> Tensor:
        """gamma SNR / (SNR + gamma)."""
        gamma = sigma_data**-2 if self.gamma is None else self.gamma
        return gamma * snr / (snr + gamma)


@WEIGHTINGS.register("edm")
class EDM(_OfData):
    """The error of x0 counts SNR + 1 / sigma_data^2: with `prediction: edm`, every level counts 1.

    Args:
        without_signal: factor where no signal is left.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
    """

    def __init__(self, *, without_signal: NonNegativeFloat = 1.0) -> None:
        super().__init__(without_signal)

    def of_data(self, snr: Tensor, sigma_data: float) -> Tensor:
        """SNR + 1 / sigma_data^2."""
        return snr + sigma_data**-2


@WEIGHTINGS.register("p2")
class P2(_OfData):
    """The error of eps counts 1 / (k + SNR)^gamma: less where there is little noise, and only details are left to learn.

    Args:
        k: keeps the weight finite; 1 makes it (1 - alpha^2)^gamma for a process that preserves variance.
        gamma: 0 weights the error of eps evenly, more moves weight towards noise.
        without_signal: factor where no signal is left, as of `min_snr`.

    Source: Choi et al. 2022 (arXiv:2204.00227).
    """

    def __init__(
        self, *, k: PositiveFloat = 1.0, gamma: NonNegativeFloat = 1.0, without_signal: NonNegativeFloat = 1.0
    ) -> None:
        super().__init__(without_signal)
        self.k, self.gamma = k, gamma

    def of_data(self, snr: Tensor, sigma_data: float) -> Tensor:
        """SNR / (k + SNR)^gamma."""
        return snr / (self.k + snr) ** self.gamma


def with_log_variance(loss: Tensor, log_variance: Tensor) -> Tensor:
    """loss / exp(u) + u, (B,): a network learns u, and with it to count every level alike, whatever its loss is.

    Its minimum over u is at u = ln(loss), so the levels' losses are divided by what they are on average. `u` is the output of a
    network of the run that is trained in the same step (`noise_level_variance`); it is not part of the model.

    Args:
        loss: weighted losses (B,).
        log_variance: u (B,).

    Source: Karras et al. 2024 (arXiv:2312.02696); Kendall et al. 2018 (arXiv:1705.07115).
    """
    u = log_variance.float()
    return loss * torch.exp(-u) + u


def noise_coordinate(level: Level) -> Tensor:
    """Noise levels (B,) as a network that learns u is told them, whatever the process: ln(sigma / alpha) / 4, cut off at 5."""
    return (level.ratio.log() / 4).clamp(-5, 5).float()


def create_weighting(options: Mapping[str, Any]) -> Weighting:
    """The weighting that a `weighting:` entry describes: `type`, a name registered under WEIGHTINGS, and its options.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    weighting: Weighting = WEIGHTINGS.create(*WEIGHTINGS.named(options))
    return weighting
