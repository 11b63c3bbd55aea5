"""Guidance: formulas, how often the network is called, and that it does what it is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dlas.diffusion import Denoised, Level, NetworkDenoiser, convert, create_process
from dlas.diffusion.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    class_gradient,
    clip,
    dynamic_threshold,
)
from dlas.diffusion.samplers import create_sampler
from dlas.errors import ConfigurationError

EDM = create_process({"type": "edm"})
FLOW = create_process({"type": "flow"})


class Network:
    """Remembers what it was called with; gives what depends on the sample, the time and the condition."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, times: Tensor, label: Tensor, size: float = 1.0) -> Tensor:
        self.batches.append(len(x))
        return torch.sin(x * size + times[:, None, None, None] + label[:, None, None, None])


def guided(network: Network, guidance: Guidance, process=FLOW) -> ClassifierFree:
    conditions = {"label": torch.tensor([1.0, 2.0]), "size": 0.7}
    return ClassifierFree(network, process, "velocity", conditions, unconditional={"label": torch.zeros(2)}, guidance=guidance)


def samples() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def velocity(label: list[float], time: float) -> Tensor:
    return Network()(samples(), FLOW.conditioning(torch.full((2,), time)), torch.tensor(label), 0.7)


def test_classifier_free_guidance_takes_one_call_of_twice_the_batch() -> None:
    network = Network()
    seen = guided(network, Guidance(3.0))(samples(), 0.4).x0
    assert network.batches == [4]
    good, bad = velocity([1.0, 2.0], 0.4), velocity([0.0, 0.0], 0.4)
    assert torch.allclose(seen, samples() - 0.4 * (bad + 3 * (good - bad)), atol=1e-5)


def test_outside_its_interval_only_the_condition_is_asked() -> None:
    network = Network()
    denoise = guided(network, Guidance(3.0, interval=[0.5, 2.0]))
    for time, expected in ((0.9, 2), (0.5, 4), (0.2, 2)):  # sigma / alpha: 9, 1, 0.25
        network.batches.clear()
        seen = denoise(samples(), time).x0
        assert network.batches == [expected]
        if expected == 2:
            assert torch.allclose(seen, samples() - time * velocity([1.0, 2.0], time), atol=1e-6)


def test_no_guidance_costs_nothing() -> None:
    network = Network()
    guided(network, Guidance(1.0))(samples(), 0.4)
    assert network.batches == [2]


def test_rescaled_guidance_has_the_deviation_of_the_condition() -> None:
    good, bad = samples(), 0.3 * samples().flip(0)
    plain = Guidance(5.0).combine(good, bad, 5.0)
    whole = Guidance(5.0, rescale=1.0).combine(good, bad, 5.0)
    half = Guidance(5.0, rescale=0.5).combine(good, bad, 5.0)
    assert torch.allclose(whole.std((1, 2, 3)), good.std((1, 2, 3)), rtol=1e-5)
    assert torch.allclose(whole / plain, (whole / plain)[:, :1, :1, :1].expand_as(plain), rtol=1e-4)
    assert torch.allclose(half, (whole + plain) / 2, atol=1e-5)


def test_a_ramp_grows_towards_the_data() -> None:
    ramp = Guidance(3.0, ramp=True)
    vp = create_process({"type": "vp", "steps": 100})
    assert [ramp.weight(vp, t) for t in (0, 50, 99)] == pytest.approx([3, 2, 1.02])
    assert ramp.weight(FLOW, 0.25) == pytest.approx(2.5)
    with pytest.raises(ConfigurationError, match="ramp"):
        ramp.weight(EDM, 1.0)


def test_autoguidance_leads_away_from_the_weak_network_whatever_it_predicts() -> None:
    strong = NetworkDenoiser(lambda x, t: 0.5 * x, EDM, "x0")
    weak = NetworkDenoiser(lambda x, t: 0.2 * x, EDM, "x0")
    x, level = samples(), Level(torch.tensor(1.0), torch.tensor(1.5))
    factor = EDM.input_factor(level)
    expected = x * factor * (0.2 + 2.5 * 0.3)
    assert torch.allclose(Autoguidance(strong, weak, Guidance(2.5))(x, 1.5).x0, expected, atol=1e-5)
    other = NetworkDenoiser(lambda shown, t: convert(0.2 * shown, "x0", "v", x, level), EDM, "v")
    assert torch.allclose(Autoguidance(strong, other, Guidance(2.5))(x, 1.5).x0, expected, atol=1e-5)
    alone = Autoguidance(strong, weak, Guidance(2.5, interval=[2, 3]))(x, 1.5).x0
    assert torch.allclose(alone, strong(x, 1.5).x0)


@pytest.mark.parametrize("sampler", [{"type": "ddim"}, {"type": "ancestral"}])
def test_classifier_guidance_leads_to_the_class(sampler: dict[str, object]) -> None:
    """Two classes at -1 and 1, each N(., 0.3^2): with the exact classifier of noisy samples, guided samples are one class."""
    process, count = create_process({"type": "vp", "schedule": "cosine", "steps": 400}), 1500
    levels = process.level

    def logit(x: Tensor, times: Tensor) -> Tensor:
        level = levels(times).like(x)
        return 2 * level.alpha * x / ((0.3 * level.alpha).square() + level.sigma.square())

    def denoise(x: Tensor, time: float) -> Denoised:
        level = levels(torch.tensor([time])).like(x)
        variance = (0.3 * level.alpha).square() + level.sigma.square()
        sign = torch.tanh(logit(x, torch.tensor([time])) / 2)
        return Denoised(sign + 0.09 * level.alpha / variance * (x - level.alpha * sign))

    def classifier(x: Tensor, times: Tensor) -> Tensor:
        return torch.cat((-logit(x, times) / 2, logit(x, times) / 2), 1)

    gradient = class_gradient(classifier, torch.ones(count, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    grid = process.grid(process.spaced(100))
    noise = torch.randn(101, count, 1, generator=generator)
    x = create_sampler(sampler).run(ClassifierGuidance(denoise, process, gradient), noise[100], grid, lambda k: noise[k])
    assert (x > 0).double().mean() > 0.99
    assert x.mean().item() == pytest.approx(1.0, abs=0.05)
    assert x.std().item() == pytest.approx(0.3, abs=0.05)


def test_pure_noise_is_not_classified() -> None:
    def denoise(x: Tensor, time: float) -> Denoised:
        return Denoised(torch.zeros_like(x))

    seen = ClassifierGuidance(denoise, FLOW, lambda x, t: torch.ones_like(x))(samples(), 1.0)
    assert seen.classified is None
    assert torch.equal(seen.x0, torch.zeros_like(samples()))


def test_dynamic_thresholding() -> None:
    x0 = torch.stack((torch.linspace(-4, 4, 1001), torch.linspace(-0.5, 0.5, 1001)))[:, None]
    made = dynamic_threshold(0.9)(x0)
    limit = x0[0].abs().quantile(0.9)
    assert torch.allclose(made[0], x0[0].clamp(-limit, limit) / limit, atol=1e-6)
    assert torch.equal(made[1], x0[1])
    assert dynamic_threshold(1.0)(x0).abs().max() == 1
    assert torch.equal(dynamic_threshold()(torch.tensor([[3.0]])), torch.tensor([[1.0]]))
    assert clip()(x0).abs().max() == 1
    with pytest.raises(ConfigurationError, match="quantile"):
        dynamic_threshold(0)


def test_what_cannot_be_guided_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'label' is \\(3,\\) without the condition"):
        ClassifierFree(Network(), FLOW, conditions={"label": torch.zeros(2)}, unconditional={"label": torch.zeros(3)})
    with pytest.raises(ConfigurationError, match="interval"):
        Guidance(interval=[2, 1])
    with pytest.raises(ConfigurationError, match="rescale"):
        Guidance(rescale=math.e)
