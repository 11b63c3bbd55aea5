"""How much signal and noise a sample holds, and what a network may predict of it.

Everything in this package is written for ``x = alpha x0 + sigma eps`` with ``x0`` the data and ``eps`` standard normal noise. A
schedule, whichever paper it is from, is a path of pairs (alpha, sigma):

============================  =============================  ==================
family                        alpha, sigma                   noise is at
============================  =============================  ==================
variance preserving (DDPM)    alpha^2 + sigma^2 = 1          the last timestep
variance exploding (EDM)      1, sigma                       large sigma
flow matching                 1 - t, t                       t = 1
============================  =============================  ==================
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Prediction: TypeAlias = Literal["eps", "x0", "v", "velocity", "edm"]
"""What a network's output stands for.

========  ====================================  =============================================================
name      target                                source
========  ====================================  =============================================================
eps       the noise                             Ho et al. 2020 (arXiv:2006.11239), equation 14
x0        the data                              there, section 3.2
v         alpha eps - sigma x0                  Salimans and Ho 2022 (arXiv:2202.00512), section 4
velocity  eps - x0                              Liu et al. 2022 (arXiv:2209.03003), equation 1, time reversed
edm       unit variance at every noise level    Karras et al. 2022 (arXiv:2206.00364), equation 8
========  ====================================  =============================================================
"""


class Level(NamedTuple):
    """Factors of signal and noise: tensors that broadcast over the samples, (B, 1, ...) or without dimensions, or numbers.

    Attributes:
        alpha: factor of the data, >= 0.
        sigma: factor of the noise, >= 0; not both are 0.
    """

    alpha: Tensor
    sigma: Tensor

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2; infinite without noise."""
        return (self.alpha / self.sigma).square()

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, EDM's sigma; infinite without signal."""
        return self.sigma / self.alpha

    def like(self, x: Tensor) -> Level:
        """Levels (B,) of the samples of `x` (B, ...), shaped to broadcast over them, in its type but in float32 at least."""
        return Level(*(over(factor, x) for factor in self))


def over(values: Tensor, x: Tensor) -> Tensor:
    """Numbers shaped to broadcast over `x` (B, C, ...), on its device and in its type, but in float32 at least.

    Args:
        values: (B,), one a sample; or (B, ...), one a place, for all channels.
        x: samples.
    """
    values = values.to(x.device, torch.promote_types(x.dtype, torch.float32))
    return values.reshape(-1, *(1,) * (x.dim() - 1)) if values.dim() == 1 else values.unsqueeze(1)


def diffuse(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """x = alpha x0 + sigma eps, (B, ...)."""
    return level.alpha * x0 + level.sigma * eps


def skip_and_scale(level: Level, sigma_data: float) -> tuple[Tensor, Tensor]:
    """c_skip and c_out with x0 = c_skip x + c_out F, by which F has unit variance as a target at every level.

    For alpha = 1 these are those of Karras et al. 2022 (arXiv:2206.00364), table 1; otherwise theirs for x / alpha and
    sigma / alpha, written so that they hold at alpha = 0, too.

    Args:
        level: noise levels.
        sigma_data: standard deviation of the data.
    """
    variance = level.sigma.square() + (level.alpha * sigma_data).square()
    return level.alpha * sigma_data**2 / variance, level.sigma * sigma_data * variance.rsqrt()


def target(kind: Prediction, x0: Tensor, eps: Tensor, level: Level, sigma_data: float = 1.0) -> Tensor:
    """What a network of this kind should give for `diffuse(x0, eps, level)`.

    Args:
        kind: of prediction.
        x0: the data, (B, ...).
        eps: the noise in it.
        level: noise levels; `edm` needs sigma > 0.
        sigma_data: standard deviation of the data, for `edm`.
    """
    match kind:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return level.alpha * eps - level.sigma * x0
        case "velocity":
            return eps - x0
        case "edm":  # (x0 - c_skip x) / c_out, multiplied out so that nothing large cancels
            root = (level.sigma.square() + (level.alpha * sigma_data).square()).sqrt()
            return (level.sigma * x0 - level.alpha * sigma_data**2 * eps) / (sigma_data * root)
    raise _unknown(kind)


def to_x0(kind: Prediction, output: Tensor, x: Tensor, level: Level, sigma_data: float = 1.0) -> Tensor:
    """The data that a network's output means.

    Args:
        kind: of prediction.
        output: of the network, (B, ...).
        x: what it was shown.
        level: noise levels; `eps` needs alpha > 0 (predict something else if the schedule ends in pure noise).
        sigma_data: standard deviation of the data, for `edm`.
    """
    match kind:
        case "eps":
            return (x - level.sigma * output) / level.alpha
        case "x0":
            return output
        case "v":
            return (level.alpha * x - level.sigma * output) / (level.alpha.square() + level.sigma.square())
        case "velocity":
            return (x - level.sigma * output) / (level.alpha + level.sigma)
        case "edm":
            skip, scale = skip_and_scale(level, sigma_data)
            return skip * x + scale * output
    raise _unknown(kind)


def to_eps(kind: Prediction, output: Tensor, x: Tensor, level: Level, sigma_data: float = 1.0) -> Tensor:
    """The noise that a network's output means; arguments as of `to_x0`, and all but `eps` and `velocity` need sigma > 0."""
    match kind:
        case "eps":
            return output
        case "v":
            return (level.sigma * x + level.alpha * output) / (level.alpha.square() + level.sigma.square())
        case "velocity":
            return (x + level.alpha * output) / (level.alpha + level.sigma)
    return eps_of(to_x0(kind, output, x, level, sigma_data), x, level)


def eps_of(x0: Tensor, x: Tensor, level: Level) -> Tensor:
    """The noise in `x` if `x0` is the data in it; needs sigma > 0."""
    return (x - level.alpha * x0) / level.sigma


def error_factor(kind: Prediction, level: Level, sigma_data: float = 1.0) -> Tensor:
    """k with |error of x0| = k |error of the prediction|: how strongly a network's output moves the data it means.

    Args:
        kind: of prediction.
        level: noise levels.
        sigma_data: standard deviation of the data, for `edm`.
    """
    match kind:
        case "eps":
            return level.ratio
        case "x0":
            return torch.ones_like(level.alpha)
        case "v":
            return level.sigma / (level.alpha.square() + level.sigma.square())
        case "velocity":
            return level.sigma / (level.alpha + level.sigma)
        case "edm":
            return skip_and_scale(level, sigma_data)[1]
    raise _unknown(kind)


def convert(output: Tensor, source: Prediction, to: Prediction, x: Tensor, level: Level, sigma_data: float = 1.0) -> Tensor:
    """A network's output in terms of another kind of prediction.

    Args:
        output: of the network, (B, ...).
        source: its kind.
        to: the kind that is wanted.
        x: what the network was shown.
        level: noise levels, 0 < sigma and 0 < alpha.
        sigma_data: standard deviation of the data, for `edm`.
    """
    if source == to:
        return output
    x0 = to_x0(source, output, x, level, sigma_data)
    return target(to, x0, to_eps(source, output, x, level, sigma_data), level, sigma_data)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"a prediction is one of eps, x0, v, velocity, edm; given: {kind!r}")
