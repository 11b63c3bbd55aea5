"""Variances, the bound and respacing, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from dlas.diffusion import Level, create_process
from dlas.diffusion.likelihood import bits_per_dimension, discretised_log_likelihood, normal_kl
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.respacing import Respaced, spaced_timesteps
from dlas.diffusion.training import Estimate, Objective
from dlas.diffusion.variance import Chain, posterior
from dlas.errors import ConfigurationError


def vp(steps: int = 40, **options: object) -> Timesteps:
    process = create_process({"type": "vp", "schedule": "cosine", "steps": steps, **options})
    assert isinstance(process, Timesteps)
    return process


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_posterior_by_bayes() -> None:
    """Any two levels: the product of q(lower | x0) and q(x | lower), as precisions add."""
    level, lower = Level(numbers(0.5, 0.0), numbers(1.3, 1.0)), Level(numbers(0.8, 0.6), numbers(0.4, 0.8))
    ratio = level.alpha / lower.alpha
    added = level.sigma**2 - ratio**2 * lower.sigma**2
    precision = 1 / lower.sigma**2 + ratio**2 / added
    found = posterior(level, lower)
    x0, x = numbers(0.7, -0.2), numbers(-1.0, 2.0)
    assert torch.allclose(found.variance, 1 / precision)
    mean = (lower.alpha * x0 / lower.sigma**2 + ratio * x / added) / precision
    assert torch.allclose(found.mean(x0, x), mean)
    assert torch.allclose(found.x0_of(mean, x), x0)
    assert torch.allclose(found.forward_variance, added)


def test_kl_is_that_of_normal_distributions() -> None:
    mean, log_variance = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = numbers(0.3), numbers(-0.7)
    found = normal_kl(mean, log_variance, *other)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(other[0], (other[1] / 2).exp()))
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.3), (-0.95, 0.05), (2.0, 0.01), (0.4, 1 / 255)])
def test_probabilities_of_all_values_sum_to_one(mean: float, scale: float) -> None:
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    logs = discretised_log_likelihood(values, numbers(mean), numbers(scale).log())
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-9)
    step = Normal(mean, scale)
    exact = step.cdf(values + 1 / 255) - step.cdf(values - 1 / 255)
    assert torch.allclose(logs.exp()[1:-1], exact[1:-1], atol=4e-4)


@pytest.mark.parametrize("respacing", ["", "10", "ddim8"])
def test_bound_of_normal_data_is_their_entropy(respacing: str) -> None:
    """The steps back from a normal distribution are normal, so the bound of the best model is tight at any number of steps."""
    deviation = 0.25
    whole = vp()
    process = Respaced(whole, spaced_timesteps(40, respacing)) if respacing else whole
    objective = Objective(process, "x0", "learned")
    chain = objective.chain
    lower = torch.cat((numbers(1), chain.level.alpha[:-1])), torch.cat((numbers(0), chain.level.sigma[:-1]))
    above, below = ((a * deviation) ** 2 + s**2 for a, s in (chain.level, lower))
    ratio = chain.level.alpha / lower[0]
    log_variance = (below - (ratio * below) ** 2 / above).log()

    def step(x: Tensor, times: Tensor) -> Estimate:
        share = chain.level.alpha * deviation**2 / above
        values = log_variance[times][:, None].expand_as(x)
        return objective.estimate(share[times][:, None].float() * x, values.float(), x, times)

    generator = torch.Generator().manual_seed(0)
    x0 = deviation * torch.randn(2, 20000, generator=generator)
    x0 = ((x0 + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    found = bits_per_dimension(chain, step, x0, lambda k: torch.randn(x0.shape, generator=generator))
    entropy = 0.5 * math.log2(2 * math.pi * math.e * deviation**2) + math.log2(127.5)
    assert found.total.mean().item() == pytest.approx(entropy, abs=0.02)
    exact = -discretised_log_likelihood(x0, torch.zeros(()), torch.tensor(math.log(deviation))).mean(1) / math.log(2)
    # What remains is that the chain does not end in quite the noise that samples begin with.
    assert torch.allclose(found.total, exact, atol=0.02)
    assert found.steps.shape == (2, process.steps)
    assert torch.allclose(found.total, found.steps.sum(1) + found.prior)


def test_worse_models_have_larger_bounds() -> None:
    process = vp(10)
    x0 = torch.zeros(1, 500)
    bounds = []
    for seen in (0.0, 0.2, 0.4):
        objective = Objective(process, "x0", "fixed_small")
        generator = torch.Generator().manual_seed(0)
        found = bits_per_dimension(
            objective.chain,
            lambda x, times, o=objective, s=seen: o.estimate(torch.full_like(x, s), None, x, times),
            x0,
            lambda k, g=generator: torch.randn(1, 500, generator=g),
        )
        assert found.x0_error.flatten().tolist() == pytest.approx([seen**2] * 10)
        bounds.append(found.total.item())
    assert bounds == sorted(bounds)


def test_learned_range_lies_between_the_fixed_ones() -> None:
    chain, times, x = Chain(vp()), torch.tensor([0, 1, 20, 39]), torch.zeros(4, 3, 2, 2)
    link = chain.at(times, x)
    small, large = (link.log_variance("learned_range", torch.full_like(x, v)) for v in (-1.0, 1.0))
    assert torch.allclose(small, link.log_small.expand_as(x))
    assert torch.allclose(large[1:], link.log_large.expand_as(x)[1:])
    assert torch.allclose(link.log_variance("learned_range", torch.zeros_like(x)), (small + large) / 2)
    with pytest.raises(ValueError, match="twice as many output channels"):
        link.log_variance("learned", None)


def test_single_timestep_and_pure_noise_have_finite_tables() -> None:
    for process in (vp(1), vp(40, zero_terminal_snr=True)):
        link = Chain(process).at(torch.tensor([process.steps - 1]), torch.zeros(1, 1))
        assert all(torch.isfinite(each).all() for each in (*link.posterior, link.log_small, link.log_beta, link.log_large))


# ------------------------------------------------------------------------------------------------------------------ respacing


def test_respaced_process_has_the_levels_and_tells_the_original_timesteps() -> None:
    process = vp(40, rescale_timesteps=True)
    kept = spaced_timesteps(40, [2, 3])
    assert kept == [0, 19, 20, 30, 39]  # 20 + 9.5, rounded half to even
    some = Respaced(process, kept)
    times = torch.arange(5)
    assert torch.equal(some.level(times).alpha, process.level(torch.tensor(kept)).alpha)
    assert torch.equal(some.conditioning(times), process.conditioning(torch.tensor(kept)))
    fewer = Respaced(some, [0, 4])
    assert torch.equal(fewer.conditioning(torch.tensor([1])), process.conditioning(torch.tensor([39])))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("ddim3000", "cannot create exactly 3000 of 1000 steps with an integer stride"),
        ("ddim7x", "given: 'ddim7x'"),
        ("10,,5", "given: '10,,5'"),
        ("500,600", "cannot keep 600 timesteps of section 2 of 2, which has 500"),
        ([-1], "cannot keep -1"),
    ],
)
def test_impossible_respacings_are_explained(sections: str | list[int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        spaced_timesteps(1000, sections)
