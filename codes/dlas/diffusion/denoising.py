"""From a network to a function that says what data it sees in a noisy sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dlas.diffusion.levels import Prediction, to_x0
from dlas.diffusion.processes import Process


class Denoised(NamedTuple):
    """What a network sees in noisy samples.

    Attributes:
        x0: the data, (B, ...), float32.
        variance: the part of its output that tells the variance, (B, ...), from -1 to 1 between two bounds; None where the
            network does not learn it.
    """

    x0: Tensor
    variance: Tensor | None = None


class Denoiser(Protocol):
    """Says what data are in samples `x` (B, ...) at time `time`, one number for all of them."""

    def __call__(self, x: Tensor, time: float) -> Denoised: ...


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
        times = torch.full((len(x),), time, dtype=torch.float64, device=x.device)
        output, variance, _ = self.predict(x, times)
        level = self.process.level(times).like(x)
        x0 = to_x0(self.prediction, output, x.float(), level, self.process.sigma_data)
        return Denoised(x0 if self.transform is None else self.transform(x0), variance)

    def predict(self, x: Tensor, times: Tensor) -> tuple[Tensor, Tensor | None, tuple[Any, ...]]:
        """The network's prediction at times (B,), the part that tells the variance, and whatever else it gave.

        Raises:
            ValueError: the network's channels are not those of `x`, or twice as many where it learns the variance.
        """
        factor = self.process.input_factor(self.process.level(times).like(x))
        shown = x if factor is None else x * factor.to(x.dtype)
        result = self.network(shown, self.process.conditioning(times), **self.conditions)
        output, *others = result if isinstance(result, tuple | list) else (result,)
        output = output.float()
        channels = x.shape[1] * (2 if self.learned_variance else 1)
        if output.shape[1] != channels:
            hint = "prediction and variance" if self.learned_variance else "no variance is learned"
            raise ValueError(f"the network gave {output.shape[1]} channels, expected {channels} ({hint})")
        if not self.learned_variance:
            return output, None, tuple(others)
        prediction, variance = output.chunk(2, dim=1)
        return prediction, variance, tuple(others)
