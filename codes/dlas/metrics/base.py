"""What a metric is.

Two kinds are registered under METRICS:

- a function `(prediction, target, /, *, options) -> Tensor` gives one number for each sample (PSNR, SSIM); the mean over
  a validation set is its summary;
- a class with the methods of `Metric`: one that needs more than two pictures, such as a network (`SampleMetric`), or that sees
  a whole set before it has a number (a Fréchet distance, an error rate).

More of it is better, unless it is a class that says `higher_is_better = False`.

`create_metric` turns either into a `Metric`, so that a validation loop treats them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

from dlas.metrics.average import Average
from dlas.registry import METRICS

Against = Literal["target", "input", "nothing"]


class Metric(Protocol):
    """Accumulates over a validation set.

    Attributes:
        against: what a prediction is compared with, and `update` is given as its second argument: the true picture, the
            network's input, or nothing (the argument is then the prediction again).
        placed: whether `update` is told the positions of the samples in their set as a third argument.
    """

    against: Against
    higher_is_better: ClassVar[bool] = True
    placed: ClassVar[bool] = False

    def update(self, prediction: Tensor, target: Tensor, /) -> Tensor | None:
        """Adds samples; returns their own values where each has one, (N,)."""

    def merge(self, other: Any, /) -> None:
        """Adds what another metric of the same kind has seen."""

    def synchronize(self) -> None:
        """Adds what the metric has seen in the other processes; called once, by all of them, before `compute`."""

    def compute(self) -> Tensor:
        """The number for everything seen so far."""


class MeanOverSamples:
    """Turns a per-sample function into a `Metric`: its mean.

    Args:
        function: `(prediction, target) -> (N,)`.
        device: where the sums live.
    """

    against: Against = "target"
    higher_is_better: ClassVar[bool] = True
    placed: ClassVar[bool] = False

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

    def synchronize(self) -> None:
        """Adds what the metric has seen in the other processes; called once, by all of them, before `compute`."""
        self.average.synchronize()

    def compute(self) -> Tensor:
        """See `Average.compute`."""
        return self.average.compute()


def higher_is_better(name: str) -> bool:
    """Whether more of a registered metric is better."""
    return bool(METRICS.find(name).attributes.get("higher_is_better", True))


class PreparedMetric:
    """A metric that is a class.

    Attributes:
        against: see `Metric`.
        higher_is_better: which way is better.
        placed: see `Metric`.
    """

    against: Against = "target"
    higher_is_better: ClassVar[bool] = True
    placed: ClassVar[bool] = False

    def prepare(self, device: torch.device) -> None:
        """Called once before the first update: reads files, and puts what accumulates on the device."""


class SampleMetric(PreparedMetric):
    """A metric with one number for each sample, and their mean for a set. Subclasses give `measure`."""

    def __init__(self) -> None:
        self.average = Average()

    def prepare(self, device: torch.device) -> None:
        self.average = Average(device)

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One number for each sample, (N,), from pictures (N, C, H, W) in [0, 1]."""
        raise NotImplementedError

    def update(self, prediction: Tensor, target: Tensor, /) -> Tensor:
        """Adds samples and returns their values."""
        values = self.measure(prediction, target)
        self.average.update(values)
        return values

    def merge(self, other: Self, /) -> None:
        """Adds what `other` has seen."""
        self.average.merge(other.average)

    def synchronize(self) -> None:
        """Adds what the metric has seen in the other processes; called once, by all of them, before `compute`."""
        self.average.synchronize()

    def compute(self) -> Tensor:
        """See `Average.compute`."""
        return self.average.compute()


def create_metric(options: Mapping[str, Any], device: torch.device | str = "cpu") -> Metric:
    """The metric that `options` describe.

    Args:
        options: `type`, a name registered under METRICS, and its options: ``{"type": "psnr_y", "crop_border": 4}``.
        device: where sums of per-sample values and networks live; best the device of the images.

    Raises:
        ConfigurationError: `type` is missing or unknown. Wrong options of a per-sample metric are found when it is first used.
        CheckpointError: a metric needs weights that are nowhere.
    """
    name, settings = METRICS.named(options)
    if isinstance(METRICS.get(name), type):
        metric: Metric = METRICS.create(name, settings)
        if isinstance(metric, PreparedMetric):
            metric.prepare(torch.device(device))
        return metric
    return MeanOverSamples(lambda prediction, target: METRICS.create(name, settings, prediction, target), device)
