"""Noise levels and predictions: conversions are exact, and processes are those of their papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dlas.diffusion import Level, NetworkDenoiser, convert, create_process, diffuse, target, to_eps, to_x0
from dlas.diffusion.levels import error_factor
from dlas.diffusion.samplers import create_sampler
from dlas.diffusion.schedules import alpha_bars, betas_of
from dlas.diffusion.times import low_discrepancy
from dlas.errors import ConfigurationError

KINDS = ("eps", "x0", "v", "velocity", "edm")
PROCESSES = [
    {"type": "vp", "schedule": "linear", "steps": 100},
    {"type": "vp", "schedule": "cosine", "steps": 50, "sigma_data": 0.7},
    {"type": "edm"},
    {"type": "flow", "shift": 3.0},
]


def levels(options: dict[str, object]) -> tuple[Tensor, Tensor, Level, float]:
    process = create_process(options)
    times = process.time_of(torch.tensor([0.03, 0.2, 0.5, 0.8, 0.97]))
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    return x0, eps, process.level(times).like(x0), process.sigma_data


@pytest.mark.parametrize("options", PROCESSES, ids=lambda o: f"{o['type']}-{o.get('schedule', '')}")
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_prediction_gives_data_and_noise(kind: str, options: dict[str, object]) -> None:
    x0, eps, level, sigma_data = levels(options)
    x = diffuse(x0, eps, level)
    output = target(kind, x0, eps, level, sigma_data)
    assert torch.allclose(to_x0(kind, output, x, level, sigma_data), x0, rtol=0, atol=1e-12)
    assert torch.allclose(to_eps(kind, output, x, level, sigma_data), eps, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", PROCESSES, ids=lambda o: f"{o['type']}-{o.get('schedule', '')}")
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_conversion_there_and_back(source: str, to: str, options: dict[str, object]) -> None:
    x0, eps, level, sigma_data = levels(options)
    x, output = diffuse(x0, eps, level), torch.sin(3 * x0 + eps)
    there = convert(output, source, to, x, level, sigma_data)
    scale = max(1.0, float(there.abs().max()))
    assert torch.allclose(convert(there, to, source, x, level, sigma_data), output, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_error_factor_is_the_derivative(kind: str) -> None:
    x0, eps, level, sigma_data = levels(PROCESSES[3])
    x, output = diffuse(x0, eps, level), target(kind, x0, eps, level, sigma_data)
    moved = to_x0(kind, output + 1.0, x, level, sigma_data) - x0
    assert torch.allclose(moved.abs(), error_factor(kind, level, sigma_data).expand_as(moved), rtol=1e-9)


@pytest.mark.parametrize("kind", ["v", "velocity", "edm", "x0"])
def test_pure_noise_is_a_level_too(kind: str) -> None:
    level = Level(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    x0, eps = torch.tensor([[0.3, -2.0]], dtype=torch.float64), torch.tensor([[1.5, 0.2]], dtype=torch.float64)
    output = target(kind, x0, eps, level, 0.5)
    assert torch.allclose(to_x0(kind, output, diffuse(x0, eps, level), level, 0.5), x0, atol=1e-14)


def test_targets_by_their_formulas() -> None:
    level = Level(torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64))
    x0, eps = torch.tensor([2.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    assert target("v", x0, eps, level).item() == pytest.approx(0.6 * -1 - 0.8 * 2)
    assert target("velocity", x0, eps, level).item() == pytest.approx(-3.0)
    exploding = Level(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64))
    skip, out = 0.25 / (0.49 + 0.25), 0.7 * 0.5 / math.sqrt(0.49 + 0.25)  # table 1 of EDM
    wanted = (2.0 - skip * (2.0 - 0.7)) / out
    assert target("edm", x0, eps, exploding, 0.5).item() == pytest.approx(wanted, rel=1e-12)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_its_beginning() -> None:
    plain, rescaled = (create_process({"type": "vp", "zero_terminal_snr": on}) for on in (False, True))
    first, last = torch.tensor([0]), torch.tensor([999])
    assert rescaled.level(last).alpha.item() == 0
    assert math.isinf(rescaled.first_ratio)
    assert plain.level(last).alpha.item() == pytest.approx(0.00635, abs=1e-4)
    assert rescaled.level(first).alpha.item() == pytest.approx(plain.level(first).alpha.item(), rel=1e-12)


def test_grid_of_edm_is_that_of_the_paper() -> None:
    grid = create_process({"type": "edm"}).grid(create_process({"type": "edm"}).spaced(18))
    assert grid.steps == 18
    assert grid.sigmas[:3] == pytest.approx((80, 57.586, 40.786), abs=1e-3)
    assert grid.sigmas[-2:] == pytest.approx((0.002, 0))


@pytest.mark.parametrize("options", PROCESSES, ids=lambda o: f"{o['type']}-{o.get('schedule', '')}")
def test_times_at_a_ratio(options: dict[str, object]) -> None:
    process = create_process(options)
    times = process.time_of(torch.tensor([0.1, 0.4, 0.9]))
    assert torch.allclose(process.at_ratio(process.level(times).ratio).double(), times.double(), rtol=1e-9)


def test_trailing_timesteps() -> None:
    process = create_process({"type": "vp", "steps": 1000})
    assert process.spaced(4) == [999, 749, 499, 249]
    assert process.spaced(1) == [999]
    with pytest.raises(ConfigurationError, match="1001 sampling steps"):
        process.spaced(1001)


def test_neighbours_are_stratified() -> None:
    for start in (0, 17, 123457):
        numbers = low_discrepancy(torch.arange(start, start + 64), 0.25).sort().values
        counts = torch.histc(numbers.float(), 10, 0, 1)
        assert counts.min() >= 5
        assert counts.max() <= 8
    assert torch.equal(low_discrepancy(torch.arange(8), 0.1)[4:], low_discrepancy(torch.arange(4, 8), 0.1))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_of_a_normal_distribution(eta: float) -> None:
    process = create_process({"type": "vp", "schedule": "cosine", "steps": 400})

    def network(x: Tensor, times: Tensor) -> Tensor:  # the best eps of data N(0.5, 0.2^2)
        level = process.level(times).like(x)
        variance = (0.2 * level.alpha).square() + level.sigma.square()
        return level.sigma * (x - 0.5 * level.alpha) / variance

    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(101, 4000, 1, generator=generator)
    grid = process.grid(process.spaced(100))
    x = create_sampler({"type": "ddim", "eta": eta}).run(
        NetworkDenoiser(network, process), noises[100] * grid.sigmas[0], grid, lambda k: noises[k]
    )
    assert x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert x.std().item() == pytest.approx(0.2, abs=0.02)


def test_wrong_channels_are_named() -> None:
    process = create_process({"type": "flow"})
    denoise = NetworkDenoiser(lambda x, t: x, process, "velocity", learned_variance=True)
    with pytest.raises(ValueError, match="gave 3 channels, expected 6"):
        denoise(torch.zeros(1, 3, 2, 2), 0.5)


def test_latent_diffusions_schedule_is_linear_in_the_root() -> None:
    bars = alpha_bars("scaled_linear", 1000)
    betas = betas_of(bars)
    assert betas[0].item() == pytest.approx(0.00085, rel=1e-12)
    assert betas[-1].item() == pytest.approx(0.012, rel=1e-10)
    steps = betas.sqrt().diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=0)
    assert betas_of(alpha_bars("scaled_linear", 100)).sum().item() == pytest.approx(betas.sum().item(), rel=0.01)
    with pytest.raises(ConfigurationError, match="at least 13"):
        alpha_bars("scaled_linear", 12)
