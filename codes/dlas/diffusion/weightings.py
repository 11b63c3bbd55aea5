"""Weightings: how much the squared error of a prediction counts at a noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlas.diffusion.levels import Level, Prediction
from dlas.errors import ConfigurationError
from dlas.registry import WEIGHTINGS


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


def create_weighting(options: Mapping[str, Any]) -> Weighting:
    """The weighting that a `weighting:` entry describes: `type`, a name registered under WEIGHTINGS, and its options.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    settings = dict(options)
    if "type" not in settings:
        raise ConfigurationError(f"a weighting needs a type, one of: {', '.join(WEIGHTINGS.entries())}; given: {settings}")
    weighting: Weighting = WEIGHTINGS.create(settings.pop("type"), settings)
    return weighting
