"""The variational bound of the likelihood, in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dlas.diffusion.variance import Chain, Link


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(log_variance)) from the other normal distribution, elementwise, in nats."""
    spread = torch.exp(log_variance - other_log_variance)
    apart = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return (other_log_variance - log_variance - 1 + spread + apart) / 2


def _normal_cdf(x: Tensor) -> Tensor:
    """Of the standard normal distribution, within 2e-4 (Page, Applied Statistics 26, 1977), smooth far into the tails."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def discretised_log_likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """ln of the probability that a normal distribution gives to the 8-bit step around each number, in nats.

    Args:
        x0: data, one of 256 values from -1 to 1; the outermost steps reach to infinity.
        mean: of the distribution.
        log_scale: logarithm of its standard deviation.

    Source: Ho et al. 2020 (arXiv:2006.11239), equation 13.
    """
    inverse = torch.exp(-log_scale)
    upper = _normal_cdf(inverse * (x0 - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x0 - mean - 1 / 255))
    probability = torch.where(x0 < -0.999, upper, torch.where(x0 > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def bound_terms(link: Link, x0: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """What one step adds to the bound, elementwise (B, C, ...), in bits.

    KL divergence of the model's step from the posterior; at timestep 0 the negative logarithm of the data's probability.

    Args:
        link: the step.
        x0: data (B, C, ...).
        x: noisy samples.
        mean: of the model's step, see `dlas.diffusion.training.Objective.estimate`.
        log_variance: of it.

    Source: Ho et al. 2020 (arXiv:2006.11239), equation 5.
    """
    apart = normal_kl(link.posterior.mean(x0, x), link.log_small, mean, log_variance)
    return torch.where(link.first, -discretised_log_likelihood(x0, mean, log_variance / 2), apart) / math.log(2)


def prior_bits(chain: Chain, x0: Tensor) -> Tensor:
    """Bits per dimension (B,) by which the end of the chain is not standard normal noise."""
    level = chain.at(torch.full((len(x0),), chain.steps - 1, device=x0.device), x0).level
    zero = torch.zeros((), device=x0.device)
    return normal_kl(level.alpha * x0, 2 * level.sigma.log(), zero, zero).flatten(1).mean(1) / math.log(2)


class Bits(NamedTuple):
    """The bound of samples, in bits per dimension.

    Attributes:
        total: (B,).
        prior: (B,), its part for the end of the chain.
        steps: (B, T), its part for each step, the last timestep first.
        x0_error: (B, T), mean squared error of the data that were seen.
        eps_error: (B, T), the same of the noise.
    """

    total: Tensor
    prior: Tensor
    steps: Tensor
    x0_error: Tensor
    eps_error: Tensor


Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Noisy samples (B, C, ...) and timesteps (B,) to mean and log variance of the model's step, and the data it sees."""


@torch.no_grad()
def bits_per_dimension(chain: Chain, step: Step, x0: Tensor, noise: Callable[[int], Tensor]) -> Bits:
    """The whole bound: one call of the network for every timestep.

    Args:
        chain: the discrete process.
        step: of the model, see `dlas.diffusion.training.Objective.estimate`.
        x0: data (B, C, ...), one of 256 values from -1 to 1.
        noise: the k-th noise, standard normal, of the shape of `x0`; one for each timestep, the last timestep first.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for k in range(chain.steps):
        times = torch.full((len(x0),), chain.steps - 1 - k, device=x0.device)
        link, eps = chain.at(times, x0), noise(k)
        x = link.level.alpha * x0 + link.level.sigma * eps
        mean, log_variance, seen = step(x, times)
        implied = (x - link.level.alpha * seen) / link.level.sigma
        terms = bound_terms(link, x0, x, mean, log_variance), (seen - x0).square(), (implied - eps).square()
        found.append(tuple(term.flatten(1).mean(1) for term in terms))  # type: ignore[arg-type]
    steps, x0_error, eps_error = (torch.stack(column, 1) for column in zip(*found, strict=True))
    prior = prior_bits(chain, x0)
    return Bits(steps.sum(1) + prior, prior, steps, x0_error, eps_error)
