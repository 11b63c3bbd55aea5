"""What a metric is.

Two kinds are registered under METRICS:

- a function `(prediction, target, /, *, options) -> Tensor` gives one number for each sample (PSNR, SSIM); the mean over
  a validation set is its summary;
- a class with the methods of `Metric` sees a whole set before it has a number (a Fréchet distance, an error rate).

More of it is better, unless it is a class that says `higher_is_better = False`.

`create_metric` turns either into a `Metric`, so that a validation loop treats them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from dlas.errors import ConfigurationError
from dlas.metrics.average import Average
from dlas.registry import METRICS


class Metric(Protocol):
    """Accumulates over a validation set."""

    higher_is_better: ClassVar[bool] = True

    def update(self, prediction: Tensor, target: Tensor, /) -> Tensor | None:
        """Adds samples; returns their own values where each has one, (N,)."""

    def merge(self, other: Any, /) -> None:
        """Adds what another metric of the same kind has seen, for instance on another rank."""

    def compute(self) -> Tensor:
        """The number for everything seen so far."""


class MeanOverSamples:
    """Turns a per-sample function into a `Metric`: its mean.

    Args:
        function: `(prediction, target) -> (N,)`.
        device: where the sums live.
    """

    higher_is_better: ClassVar[bool] = True

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], device: torch.device | str = "cpu") -> None:
        self.function = function
        self.average = Average(device)

    def update(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        """Adds samples and returns their values."""
        values = self.function(prediction, target)
        self.average.update(values)
        return values

    def merge(self, other: MeanOverSamples, /) -> None:
        """Adds what `other` has seen."""
        self.average.merge(other.average)

    def compute(self) -> Tensor:
        """See `Average.compute`."""
        return self.average.compute()


def higher_is_better(name: str) -> bool:
    """Whether more of a registered metric is better."""
    return bool(METRICS.find(name).attributes.get("higher_is_better", True))


def create_metric(options: Mapping[str, Any], device: torch.device | str = "cpu") -> Metric:
    """The metric that `options` describe.

    Args:
        options: `type`, a name registered under METRICS, and its options: ``{"type": "psnr_y", "crop_border": 4}``.
        device: where sums of per-sample values live; best the device of the images.

    Raises:
        ConfigurationError: `type` is missing or unknown. Wrong options of a per-sample metric are found when it is first used.
    """
    settings = dict(options)
    name = settings.pop("type", None)
    if name is None:
        raise ConfigurationError(f"a metric needs a type, one of: {', '.join(METRICS.entries())}; given: {settings}")
    if isinstance(METRICS.get(name), type):
        return METRICS.create(name, settings)
    return MeanOverSamples(lambda prediction, target: METRICS.create(name, settings, prediction, target), device)
