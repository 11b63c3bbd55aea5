"""Samplers on mixtures of normal distributions, where the best denoiser and the end of the probability flow are known."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dlas.diffusion import Denoised, Grid, NetworkDenoiser, Process, create_process
from dlas.diffusion.samplers import create_sampler
from dlas.diffusion.samplers.ancestral import Ancestral
from dlas.diffusion.samplers.ddim import encode
from dlas.diffusion.sampling import sample, seeded_noise
from dlas.diffusion.spacing import spaced
from dlas.errors import ConfigurationError
from oracles.mixture import ONE, TWO, Mixture

PROCESSES = {
    "linear": {"type": "vp", "steps": 20000},
    "cosine": {"type": "vp", "schedule": "cosine", "steps": 20000},
    "zero_snr": {"type": "vp", "zero_terminal_snr": True, "steps": 20000},
    "edm": {"type": "edm"},
    "flow": {"type": "flow", "shift": 2.0},
}
ORDERS = {
    "ddim": ({"type": "ddim"}, 1),
    "heun": ({"type": "heun", "along": "ratio"}, 2),
    "heun-velocity": ({"type": "heun", "along": "velocity"}, 2),
    "dpm_solver": ({"type": "dpm_solver"}, 2),
}
KINDS = ("eps", "x0", "v", "velocity", "edm")
STOCHASTIC = {
    "ancestral": ({"type": "ancestral"}, 100),
    "ancestral-large": ({"type": "ancestral", "variance": "fixed_large"}, 200),
    "ddim": ({"type": "ddim", "eta": 1.0}, 100),
    "ddim-half": ({"type": "ddim", "eta": 0.5}, 100),
    "dpm_solver": ({"type": "dpm_solver", "eta": 1.0}, 50),
    "heun": ({"type": "heun", "s_churn": 20.0}, 50),
}
process_of = lru_cache(lambda name: create_process(PROCESSES[name]))


def log_grid(process: Process, steps: int, first: float = 20.0, last: float = 0.05) -> Grid:
    """Equal steps in ln(sigma / alpha)."""
    ratios = torch.linspace(math.log(first), math.log(last), steps + 1, dtype=torch.float64).exp()
    times = process.at_ratio(ratios).tolist()
    return process.grid(times[:-1], end=times[-1])


def start(mixture: Mixture, grid: Grid) -> Tensor:
    """A few samples at the grid's first level."""
    q = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64)
    return torch.stack([q, 0.2 - 0.7 * q][: len(mixture.axes)], 1) * math.hypot(0.6 * grid.alphas[0], grid.sigmas[0])


def error(mixture: Mixture, options: dict[str, object], process: Process, grid: Grid) -> float:
    x = start(mixture, grid)
    exact = mixture.transport(x, (grid.alphas[0], grid.sigmas[0]), (grid.alphas[-1], grid.sigmas[-1]))
    made = create_sampler(options).run(mixture.denoiser(process), x, grid, never)
    return (made - exact).abs().max().item()


def never(k: int) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


@pytest.mark.parametrize("mixture", [ONE, TWO], ids=["1d", "2d"])
def test_the_oracle_agrees_with_itself(mixture: Mixture) -> None:
    """The closed form of the flow solves the equation that the closed form of the denoiser gives."""
    x, (alpha, sigma), dt = torch.tensor([[0.4, -0.3][: len(mixture.axes)]], dtype=torch.float64), (0.8, 0.6), 1e-4
    ends = [mixture.transport(x, (alpha, sigma), (alpha, sigma + sign * dt)) for sign in (1, -1)]
    process = create_process({"type": "edm"})
    x0 = mixture.denoiser(process)(x / alpha, sigma / alpha).x0
    assert torch.allclose((ends[0] - ends[1]) / (2 * dt), (x - alpha * x0) / sigma, rtol=1e-6)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_deterministic_samplers_converge_at_their_order(process: str, name: str) -> None:
    options, order = ORDERS[name]
    errors = [error(TWO, options, process_of(process), log_grid(process_of(process), n)) for n in (8, 32, 64, 256)]
    slopes = [math.log2(a / b) / math.log2(n) for a, b, n in zip(errors, errors[1:], (4, 2, 4), strict=False)]
    assert slopes[0] > order - 0.5
    assert slopes[1:] == pytest.approx([order] * 2, abs=0.12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process", PROCESSES)
def test_all_predictions_lead_to_the_same_place(process: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what holds of the denoiser's order holds of every kind of prediction of every process."""
    chosen = process_of(process)
    monkeypatch.setattr(chosen, "conditioning", lambda times: times)  # told in float64
    grid = log_grid(chosen, 12)
    network = NetworkDenoiser(TWO.network(chosen, kind), chosen, kind)
    x = start(TWO, grid)
    for options in ({"type": "dpm_solver"}, {"type": "heun"}):
        sampler = create_sampler(options)
        made, exact = (sampler.run(denoise, x, grid, never) for denoise in (network, TWO.denoiser(chosen)))
        assert made.dtype == torch.float64
        assert torch.allclose(made, exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("process", ["flow", "zero_snr"])
@pytest.mark.parametrize(
    "options", [{"type": "ddim"}, {"type": "heun"}, {"type": "heun", "along": "ratio"}, {"type": "dpm_solver"}]
)
def test_from_pure_noise_to_data(process: str, options: dict[str, object]) -> None:
    chosen = process_of(process)
    errors = [error(ONE, options, chosen, chosen.grid(spaced(chosen, n))) for n in (16, 64)]
    assert errors[1] < min(0.05, errors[0] / 3)  # first order at least: a quarter


@pytest.mark.parametrize("process", ["cosine", "edm", "flow"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_give_the_distribution(process: str, name: str) -> None:
    options, steps = STOCHASTIC[name]
    chosen, count = process_of(process), 1500
    grid = log_grid(chosen, steps - 1, 60.0, 0.01)
    grid = chosen.grid(grid.times)  # and a last step to clean samples
    generator = torch.Generator().manual_seed(1)
    clean = TWO.draw(count, generator)

    def noise(k: int) -> Tensor:
        return torch.randn(count, 2, dtype=torch.float64, generator=generator)

    x = grid.alphas[0] * clean + grid.sigmas[0] * noise(-1)
    made = create_sampler(options).run(TWO.denoiser(chosen), x, grid, noise)
    for axis in (0, 1):
        shares = TWO.cumulative(made, axis).sort().values
        even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        assert (shares - even).abs().max() < 1.95 / math.sqrt(count)  # Kolmogorov-Smirnov: one in a thousand is over this


def test_euler_is_ddim_and_for_flows_euler_in_t() -> None:
    process = process_of("flow")
    grid = process.grid(spaced(process, 5))
    denoise = TWO.denoiser(process)
    x = start(TWO, grid)
    made = create_sampler({"type": "euler"}).run(denoise, x, grid, never)
    for k in range(grid.steps):
        t, after = grid.times[k], grid.sigmas[k + 1]
        x = x + (after - t) * (x - denoise(x, t).x0) / t
    assert torch.allclose(made, x, rtol=0, atol=1e-14)


def test_heun_is_that_of_edm_step_by_step() -> None:
    process = process_of("edm")
    grid, denoise = process.grid(spaced(process, 6)), ONE.denoiser(process_of("edm"))
    noises = torch.randn(6, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"type": "heun", "s_churn": 1.2, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
    made = create_sampler(options).run(denoise, start(ONE, grid), grid, lambda k: noises[k])
    x, sigmas, stirred = start(ONE, grid), grid.sigmas, 0
    for k in range(6):
        gamma = min(1.2 / 6, math.sqrt(2) - 1) if 0.05 <= sigmas[k] <= 50 else 0
        stirred += gamma > 0
        hat = sigmas[k] * (1 + gamma)
        x = x + math.sqrt(hat**2 - sigmas[k] ** 2) * 1.003 * noises[k]
        d = (x - denoise(x, hat).x0) / hat
        after = x + (sigmas[k + 1] - hat) * d
        if sigmas[k + 1] > 0:
            d = (d + (after - denoise(after, sigmas[k + 1]).x0) / sigmas[k + 1]) / 2
            after = x + (sigmas[k + 1] - hat) * d
        x = after
    assert 0 < stirred < 6
    assert torch.allclose(made, x, rtol=1e-12, atol=1e-12)


def test_dpm_solver_by_its_formula() -> None:
    process = process_of("edm")
    grid, denoise = log_grid(process, 4, 10.0, 0.2), ONE.denoiser(process_of("edm"))
    made = create_sampler({"type": "dpm_solver"}).run(denoise, start(ONE, grid), grid, never)
    x, before, h_before, s = start(ONE, grid), None, 0.0, grid.sigmas
    for k in range(4):
        seen, h = denoise(x, s[k]).x0, math.log(s[k] / s[k + 1])
        ahead = seen if before is None else (1 + h / (2 * h_before)) * seen - h / (2 * h_before) * before
        x = s[k + 1] / s[k] * x - math.expm1(-h) * ahead
        before, h_before = seen, h
    assert torch.allclose(made, x, rtol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_encoding_is_the_way_back(process: str) -> None:
    chosen = process_of(process)
    denoise = ONE.denoiser(chosen)
    data = torch.tensor([[-0.8], [0.05], [0.7]], dtype=torch.float64)
    off = []
    for steps in (100, 400):
        grid = chosen.grid(log_grid(chosen, steps, 20.0, 0.01).times)
        encoded = encode(denoise, data, grid)
        exact = ONE.transport(data, (1.0, 0.0), (grid.alphas[0], grid.sigmas[0]))
        off.append(((encoded - exact).abs().max() / grid.sigmas[0]).item())
        back = create_sampler({"type": "ddim"}).run(denoise, encoded, grid, never)
        assert torch.allclose(back, data, atol=8 / steps)
    assert off[1] < min(0.01, off[0] / 3)


def test_consistency_in_one_and_few_steps() -> None:
    """With the flow's end itself in place of a network, one step is exact and several keep the distribution."""
    process, count = process_of("edm"), 4000
    noise = seeded_noise(0, range(count), (1,))

    def ends(x: Tensor, time: float) -> Denoised:
        return Denoised(ONE.transport(x.double(), (1.0, time), (1.0, 0.0)))

    for steps in (1, 3):
        made = sample(ends, process, create_sampler({"type": "consistency"}), noise, steps=steps).x
        shares = ONE.cumulative(made, 0).sort().values
        even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        assert (shares - even).abs().max() < 1.95 / math.sqrt(count)
    plain, left = (create_sampler({"type": "consistency", "sigma_min": s}) for s in (0.0, 0.3))
    grid = process.grid([80.0, 0.5])
    zero = torch.zeros(1, 1)
    levels = [next(s.walk(lambda x, t: Denoised(zero), zero, grid, lambda k: zero + 1)).x.item() for s in (plain, left)]
    assert levels == pytest.approx([0.5, 0.4])


def test_variances_of_ancestral_steps() -> None:
    process = create_process({"type": "vp", "steps": 50})
    grid = process.grid([float(t) for t in reversed(range(50))])
    sampler, x0 = Ancestral(variance="learned_range"), torch.zeros(1, 1, 2)
    bars = process.alpha_bars
    beta = 1 - bars[20] / bars[19]
    small = beta * (1 - bars[19]) / (1 - bars[20])
    for share, wanted in ((-1.0, small), (1.0, beta), (0.0, (small * beta).sqrt())):
        deviation = sampler.deviation(Denoised(x0, torch.full((1, 1, 2), share)), grid, 49 - 20)
        assert torch.allclose(deviation**2, wanted.float().expand(1, 1, 2), rtol=1e-5)
    learned = Ancestral(variance="learned").deviation(Denoised(x0, torch.full((1, 1, 2), -3.0)), grid, 29)
    assert torch.allclose(learned**2, torch.tensor(-3.0).exp())
    assert Ancestral().deviation(Denoised(x0), grid, 29) ** 2 == pytest.approx(small.item())
    with pytest.raises(ValueError, match="needs a network that learns it"):
        sampler.deviation(Denoised(x0), grid, 29)


SPACINGS = ("own", "karras", "log_snr", "trailing", "leading", "linspace")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("process", [*PROCESSES, "short"])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_spacings_go_down_and_keep_their_count(process: str, spacing: str, count: int) -> None:
    chosen = create_process({"type": "vp", "steps": 25}) if process == "short" else process_of(process)
    times = spaced(chosen, count, spacing)
    sigmas = chosen.grid(times).sigmas
    assert len(times) == count
    assert all(a > b for a, b in pairwise(sigmas))
    if spacing != "leading":
        assert times[0] == chosen.spaced(1)[0]


def test_spacings_by_their_rules() -> None:
    ddpm, edm = create_process({"type": "vp"}), create_process({"type": "edm"})
    assert spaced(ddpm, 4, "leading") == [750, 500, 250, 0]
    assert spaced(ddpm, 4, "trailing") == [999, 749, 499, 249]
    assert spaced(ddpm, 4, "linspace") == [999, 666, 333, 0]
    assert spaced(edm, 18, "karras") == pytest.approx(edm.spaced(18))
    steps = torch.tensor(spaced(edm, 9, "log_snr")).log().diff()
    assert torch.allclose(steps, torch.full((8,), math.log(0.002 / 80) / 8))
    assert spaced(create_process({"type": "flow"}), 3, "karras")[:2] == pytest.approx([1.0, 80 / 81])
    assert spaced(create_process({"type": "vp", "steps": 20}), 20, "karras") == list(range(19, -1, -1))
    with pytest.raises(ConfigurationError, match="21 sampling steps"):
        spaced(create_process({"type": "vp", "steps": 20}), 21, "karras")
    with pytest.raises(ConfigurationError, match="a spacing is one of"):
        spaced(edm, 3, "even")  # type: ignore[arg-type]


def test_samples_do_not_depend_on_their_batch() -> None:
    process, sampler = process_of("linear"), create_sampler({"type": "ancestral"})

    def draw(positions: range) -> Tensor:
        noise = seeded_noise(7, positions, (2,))
        return sample(TWO.denoiser(process), process, sampler, noise, steps=10).x

    together = draw(range(6))
    apart = torch.cat([draw(range(2)), draw(range(2, 6))])
    assert torch.allclose(together, apart, rtol=0, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_strips_end_with_the_samples() -> None:
    process = process_of("edm")
    noise = seeded_noise(0, range(3), (2,))
    made = sample(TWO.denoiser(process), process, create_sampler({"type": "heun"}), noise, steps=10, stages=4)
    assert made.strip is not None
    assert made.strip.shape == (3, 4, 2)
    assert torch.equal(made.strip[:, -1], made.x)
    assert sample(TWO.denoiser(process), process, create_sampler({"type": "heun"}), noise, steps=10).strip is None
