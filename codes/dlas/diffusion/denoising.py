"""From a network to a function that says what data it sees in a noisy sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dlas.diffusion.levels import Prediction, to_x0
from dlas.diffusion.processes import Process


class Classified(NamedTuple):
    """What a classifier said of samples, and what was seen in them before it was asked.

    Attributes:
        gradient: of the logarithm of the class's probability by the samples, times the guidance's scale, (B, ...).
        x0: the data that the network alone sees.
    """

    gradient: Tensor
    x0: Tensor


class Denoised(NamedTuple):
    """What a network sees in noisy samples.

    Attributes:
        x0: the data, (B, ...), float32 (float64 in samples of that type).
        variance: the part of its output that tells the variance, (B, ...): from -1 to 1 between two bounds, or its logarithm,
            as the network was trained; None where the network does not learn it.
        classified: by which classifier guidance moved `x0`; None without it.
    """

    x0: Tensor
    variance: Tensor | None = None
    classified: Classified | None = None


class Denoiser(Protocol):
    """Says what data are in samples `x` (B, ...) at time `time`, one number for all of them."""

    def __call__(self, x: Tensor, time: float) -> Denoised: ...


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass
class NetworkDenoiser:
    """A network as a denoiser.

    Args:
        network: called as network(x, times, **conditions); gives (B, C, ...), or (B, 2 C, ...) where it learns the variance.
        process: what times mean.
        prediction: what the network predicts.
        conditions: further arguments of the network by name.
        learned_variance: the second half of the network's channels tells the variance.
        transform: what is done to the data that are seen (clipping, thresholding), if anything.
    """

    network: Callable[..., Any]
    process: Process
    prediction: Prediction = "eps"
    conditions: Mapping[str, Any] = field(default_factory=dict)
    learned_variance: bool = False
    transform: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, time: float) -> Denoised:
        """See `Denoiser`."""
        return self.denoised(*self.output(x, time), x, time)

    def output(self, x: Tensor, time: float) -> tuple[Tensor, Tensor | None]:
        """What the network predicts of samples `x` (B, ...) at one time, and the part that tells the variance."""
        prediction, variance, _ = self.predict(x, self.times(x, time))
        return prediction, variance

    def denoised(self, output: Tensor, variance: Tensor | None, x: Tensor, time: float) -> Denoised:
        """What data a prediction means."""
        level = self.process.level(self.times(x, time)).like(x)
        x0 = to_x0(self.prediction, output, at_least_float32(x), level, self.process.sigma_data)
        return Denoised(x0 if self.transform is None else self.transform(x0), variance)

    def times(self, x: Tensor, time: float) -> Tensor:
        """One time for all samples of `x` (B, ...): (B,), float64."""
        return torch.full((len(x),), time, dtype=torch.float64, device=x.device)

    def predict(
        self, x: Tensor, times: Tensor, conditions: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor | None, tuple[Any, ...]]:
        """The network's prediction at times (B,), the part that tells the variance, and whatever else it gave.

        Args:
            x: samples, (B, ...).
            times: of the samples.
            conditions: in place of the denoiser's own.

        Raises:
            ValueError: the network's channels are not those of `x`, or twice as many where it learns the variance.
        """
        factor = self.process.input_factor(self.process.level(times).like(x))
        shown = x if factor is None else x * factor.to(x.dtype)
        given = self.conditions if conditions is None else conditions
        result = self.network(shown, self.process.conditioning(times), **given)
        output, *others = result if isinstance(result, tuple | list) else (result,)
        output = at_least_float32(output)
        channels = x.shape[1] * (2 if self.learned_variance else 1)
        if output.shape[1] != channels:
            hint = "prediction and variance" if self.learned_variance else "no variance is learned"
            raise ValueError(f"the network gave {output.shape[1]} channels, expected {channels} ({hint})")
        if not self.learned_variance:
            return output, None, tuple(others)
        prediction, variance = output.chunk(2, dim=1)
        return prediction, variance, tuple(others)
