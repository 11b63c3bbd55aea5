"""The noise and the comparisons of benchmarks/steps_quality.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from dlas.context import Context
from dlas.diffusion.denoising import Denoised
from dlas.diffusion.sampling import sample
from dlas.injectors.diffusion_sample import DiffusionSampleInjector


@pytest.fixture(scope="module")
def quality():
    file = Path(__file__).parents[1] / "benchmarks/steps_quality.py"
    spec = importlib.util.spec_from_file_location("steps_quality", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COUNT = 2000


def sampling(sampler, steps, **more):
    """Draws single numbers; what they look like is the denoiser's."""
    return DiffusionSampleInjector(
        out="x", generator="none", process={"type": "edm"}, prediction="edm", shape=[1], sampler=sampler, steps=steps, **more
    )


def draw(drawn, variance, context):
    """Samples (COUNT,) by the best denoiser of normal numbers of that variance."""
    return sample(
        lambda x, time: Denoised(x * variance / (variance + time**2)),
        drawn.process,
        drawn.sampler,
        lambda k: context.randn((), f"x/{k}"),
        steps=drawn.steps,
        spacing=drawn.spacing,
    ).x


ROWS = [sampling({"type": "ancestral"}, 100), sampling({"type": "dpm_solver", "eta": 1}, 20, spacing="log_snr")]
COMMON = {"networks": {}, "training": False, "seed": 0, "positions": range(COUNT)}


def test_samplers_of_one_path_make_nearly_the_same_samples(quality):
    ratios = [quality.signal_to_noise(quality.grid_of(row)) for row in ROWS]
    every = sorted({each for row in ratios for each in row})
    one_path = [
        draw(row, 0.25, quality.OnePath(steps=steps, all_steps=every, **COMMON))
        for row, steps in zip(ROWS, ratios, strict=True)
    ]
    apart = [draw(row, 0.25, Context(**COMMON)) for row in ROWS]
    assert (one_path[0] - one_path[1]).std() < 0.25 * (apart[0] - apart[1]).std()
    for one, other in zip(one_path, apart, strict=True):  # and each alone is distributed as it was
        assert one.std() == pytest.approx(other.std().item(), rel=0.05)


@pytest.mark.parametrize("row", [*ROWS, sampling({"type": "dpm_solver"}, 6), sampling({"type": "heun"}, 5)])
def test_what_the_sampler_does_wrong_is_computed(quality, row):
    variances = torch.tensor([0.25, 4.0], dtype=torch.float64)
    deviations = torch.stack([draw(row, variance, Context(**COMMON)).std() for variance in variances.tolist()])
    found = [quality.distance_alone(row, variances[k : k + 1]) ** 0.5 for k in range(2)]
    assert found == pytest.approx((deviations - variances.sqrt()).abs().tolist(), abs=0.1)
    assert quality.distance_alone(row, variances) == pytest.approx(found[0] ** 2 + found[1] ** 2)


@pytest.mark.parametrize(("sampler", "factor"), [({"type": "ancestral"}, 1.8), ({"type": "dpm_solver"}, 3.5)])
def test_with_twice_the_steps_it_does_less_wrong_by_its_order(quality, sampler, factor):
    variances = torch.tensor([0.01, 0.25], dtype=torch.float64)
    found = [quality.distance_alone(sampling(sampler, steps, spacing="log_snr"), variances) ** 0.5 for steps in (40, 80)]
    assert found[0] > factor * found[1]


def test_noise_of_a_path_is_standard_normal_and_independent(quality):
    every = [0.0, 0.5, 0.7, 2.0, 9.0, 10.0]
    context = quality.OnePath(steps=[0.5, 2.0, 10.0], all_steps=every, **COMMON)
    noise = torch.stack([context.randn((), f"x/{k}") for k in (-1, 0, 1)])
    torch.testing.assert_close(noise.cov(), torch.eye(3), atol=0.08, rtol=0)
    finer = quality.OnePath(steps=every, all_steps=every, **COMMON)
    parts = [finer.randn((), f"x/{k}") for k in range(5)]
    expected = (0.2**0.5 * parts[1] + 1.3**0.5 * parts[2]) / 1.5**0.5
    torch.testing.assert_close(noise[1], expected)


def test_distances_are_compared_without_their_biases(quality):
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(4000, 1, 4, 4, generator=generator)
    yardstick = quality.Yardstick(true, 16)
    few = yardstick.distances(yardstick.project(torch.rand(300, 1, 4, 4, generator=generator)))
    shift = 0.05
    near, far = (yardstick.distances(yardstick.project((true[:300] * 0.8 + place).clamp(0, 1))) for place in (0.1, 0.1 + shift))
    assert quality.figures(*few)["bias"] == pytest.approx(few[0], rel=0.35)  # of the same distribution all of it is bias
    found = quality.compared(*far, *near)
    exact = [yardstick.distances(yardstick.project((true * 0.8 + place).clamp(0, 1)))[0] for place in (0.1, 0.1 + shift)]
    assert found["ratio"] == pytest.approx(exact[1] / exact[0], abs=3 * found["ratio_deviation"])
    assert quality.compared(*near, *near) == {"ratio": 1.0, "ratio_deviation": 0.0}
