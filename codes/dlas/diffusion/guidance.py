"""Guidance: denoisers that lean towards a condition, or away from what a worse network sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.diffusion.denoising import Classified, Denoised, Denoiser, NetworkDenoiser, at_least_float32
from dlas.diffusion.levels import convert
from dlas.diffusion.processes import Process
from dlas.errors import ConfigurationError


@dataclass(frozen=True)
class Guidance:
    """How strongly a good prediction is moved away from a bad one: bad + w (good - bad).

    All kinds of prediction are linear in each other at a level, so that it is the same whichever is guided.

    Args:
        scale: w; 1 is no guidance. In terms of (1 + k) good - k bad it is 1 + k.
        interval: least and largest sigma / alpha at which guidance is on; elsewhere the good prediction stands alone, and the
            bad one is not computed. Source: Kynkäänniemi et al. 2024 (arXiv:2404.07724).
        rescale: phi, from 0 to 1: how far the guided prediction's standard deviation is brought back to that of the good one.
            Source: Lin et al. 2023 (arXiv:2305.08891), equations 15 and 16.
        ramp: w - 1 grows from 0 at the noisiest to its full value, as 1 - t / T; for processes with timesteps, and flows.

    Raises:
        ConfigurationError: the interval is not two numbers in order, or `rescale` is not from 0 to 1.

    Source: Ho and Salimans 2022 (arXiv:2207.12598).
    """

    scale: float = 1.0
    interval: Sequence[float] | None = None
    rescale: float = 0.0
    ramp: bool = False

    def __post_init__(self) -> None:
        if self.interval is not None and (len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1]):
            raise ConfigurationError(
                f"guidance: interval is least and largest sigma / alpha, e.g. [0.2, 5]; got {self.interval}"
            )
        if not 0 <= self.rescale <= 1:
            raise ConfigurationError(f"guidance: rescale is from 0 to 1; got {self.rescale}")

    def weight(self, process: Process, time: float) -> float:
        """w at a time of a process.

        Raises:
            ConfigurationError: a ramp is asked for, but the process's times have no end.
        """
        if self.interval is not None:
            level = process.level(torch.tensor([time], dtype=torch.float64))
            if not self.interval[0] <= level.ratio.item() <= self.interval[1]:
                return 1.0
        if not self.ramp:
            return self.scale
        if not process.discrete and process.level(torch.ones(1, dtype=torch.float64)).alpha.item() > 0:
            raise ConfigurationError(
                "guidance: ramp needs timesteps or a flow; this process's times have no end, give an interval"
            )
        return 1 + (self.scale - 1) * (1 - time / (process.steps or 1))

    def combine(self, good: Tensor, bad: Tensor, weight: float) -> Tensor:
        """The guided prediction, (B, ...)."""
        guided = torch.lerp(bad, good, weight)
        if self.rescale == 0:
            return guided
        dims = tuple(range(1, good.dim()))
        factor = good.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return guided * (1 + self.rescale * (factor - 1))


@dataclass
class ClassifierFree(NetworkDenoiser):
    """Classifier-free guidance: one network with and without its condition, in one call of twice the batch.

    With a network that was trained so, `unconditional` may be another condition instead (a negative prompt).

    Args:
        unconditional: those of `conditions` that differ without the condition, by name: tensors of the same shape, (B, ...).
        guidance: how strong.

    Raises:
        ConfigurationError: a condition without counterpart.
    """

    unconditional: Mapping[str, Tensor] = field(default_factory=dict)
    guidance: Guidance = field(default_factory=Guidance)

    def __post_init__(self) -> None:
        for name, value in self.unconditional.items():
            given = self.conditions.get(name)
            if not isinstance(given, Tensor) or given.shape != value.shape:
                found = tuple(given.shape) if isinstance(given, Tensor) else given
                raise ConfigurationError(
                    f"guidance: '{name}' is {tuple(value.shape)} without the condition, so it must be a tensor of that shape "
                    f"with it; it is {found}"
                )
        self.both = {
            name: torch.cat((value, self.unconditional.get(name, value))) if _is_batched(value) else value
            for name, value in self.conditions.items()
        }

    def output(self, x: Tensor, time: float) -> tuple[Tensor, Tensor | None]:
        """See `NetworkDenoiser`; the variance is that with the condition."""
        weight = self.guidance.weight(self.process, time)
        if weight == 1:
            return super().output(x, time)
        twice = torch.cat((x, x))
        prediction, variance, _ = self.predict(twice, self.times(twice, time), self.both)
        good, bad = prediction.chunk(2)
        return self.guidance.combine(good, bad, weight), None if variance is None else variance.chunk(2)[0]


@dataclass
class Autoguidance:
    """Guidance away from what a worse network sees: a smaller or less trained one, or one without the condition.

    Args:
        denoiser: the network that is guided.
        weak: the worse one, for the same process; it may predict something else.
        guidance: how strong.

    Source: Karras et al. 2024 (arXiv:2406.02507), equation 4.
    """

    denoiser: NetworkDenoiser
    weak: NetworkDenoiser
    guidance: Guidance

    def __call__(self, x: Tensor, time: float) -> Denoised:
        """See `Denoiser`."""
        good, variance = self.denoiser.output(x, time)
        weight = self.guidance.weight(self.denoiser.process, time)
        if weight == 1:
            return self.denoiser.denoised(good, variance, x, time)
        bad, _ = self.weak.output(x, time)
        kind, process = self.denoiser.prediction, self.denoiser.process
        level = process.level(self.weak.times(x, time)).like(x)
        bad = convert(bad, self.weak.prediction, kind, at_least_float32(x), level, process.sigma_data)
        return self.denoiser.denoised(self.guidance.combine(good, bad, weight), variance, x, time)


@dataclass
class ClassifierGuidance:
    """Guidance by the gradient of a classifier of noisy samples.

    The noise is moved by - sigma times the gradient, and `x0` by sigma^2 / alpha times it, after clipping; the ancestral
    sampler moves its mean by variance times gradient instead. At pure noise, where nothing can be told of the class, nothing is
    done.

    Args:
        denoiser: that is guided.
        process: what times mean.
        gradient: of the logarithm of the class's probability by `x`, called with samples (B, ...) and the times (B,) that
            networks are told; `class_gradient` makes one of a classifier.
        scale: factor of the gradient.

    Source: Dhariwal and Nichol 2021 (arXiv:2105.05233), algorithms 1 and 2.
    """

    denoiser: Denoiser
    process: Process
    gradient: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0

    def __call__(self, x: Tensor, time: float) -> Denoised:
        """See `Denoiser`."""
        seen = self.denoiser(x, time)
        grid = self.process.grid([time])
        alpha, sigma = grid.alphas[0], grid.sigmas[0]
        if alpha == 0:
            return seen
        times = torch.full((len(x),), time, dtype=torch.float64, device=x.device)
        gradient = self.scale * at_least_float32(self.gradient(x, self.process.conditioning(times)))
        return Denoised(seen.x0 + sigma**2 / alpha * gradient, seen.variance, Classified(gradient, seen.x0))


def class_gradient(classifier: Callable[..., Tensor], labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Gradient of log p(label | x) by x, for `ClassifierGuidance`.

    Args:
        classifier: called as classifier(x, times); gives logits (B, classes).
        labels: the wanted classes, (B,), int64.
    """

    def gradient(x: Tensor, times: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            chosen = F.log_softmax(classifier(leaf, times).float(), dim=-1).gather(1, labels[:, None])
            return torch.autograd.grad(chosen.sum(), leaf)[0]

    return gradient


def clip(low: float = -1.0, high: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Limits what is seen to the range of the data; a `transform` of `NetworkDenoiser`."""
    return lambda x0: x0.clamp(low, high)


def dynamic_threshold(share: float = 0.995, least: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Limits each sample to the quantile of its magnitudes and scales it back into range: strong guidance saturates less.

    Args:
        share: which quantile, over 0 and up to 1.
        least: the limit is never below this; the result is in [-least, least].

    Source: Saharia et al. 2022 (arXiv:2205.11487), section 2.3.

    Raises:
        ConfigurationError: the quantile is none.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"dynamic threshold: the quantile is over 0 and up to 1; got {share}")

    def transform(x0: Tensor) -> Tensor:
        magnitudes = x0.flatten(1).abs()
        place = share * (magnitudes.shape[1] - 1)
        largest = magnitudes.topk(magnitudes.shape[1] - int(place)).values  # of the few above the quantile: no full sort
        limit = torch.lerp(largest[:, -1], largest[:, max(-2, -largest.shape[1])], place - int(place)).clamp(min=least)
        limit = limit.reshape(-1, *(1,) * (x0.dim() - 1))
        return x0.clamp(-limit, limit) * (least / limit)

    return transform


def _is_batched(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
