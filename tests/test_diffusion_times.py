"""Distributions of times: what they are said to be, stratified numbers kept so, and losses that stay unbiased."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dlas.diffusion import Process, create_process
from dlas.diffusion.times import create_times, low_discrepancy
from dlas.errors import ConfigurationError

EVEN = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
ALL: tuple[dict[str, Any], ...] = (
    {"type": "uniform"},
    {"type": "log_normal"},
    {"type": "logit_normal"},
    {"type": "mode"},
    {"type": "cosmap"},
    {"type": "loss_second_moment"},
    {"type": "curriculum", "until": 10},
)
FLOW = create_process({"type": "flow"})


def drawn(options: dict[str, Any], process: Process = FLOW, uniform: Tensor = EVEN, step: int = 0) -> Tensor:
    return create_times(options).draw(process, uniform, step).times


@pytest.mark.parametrize("options", ALL, ids=lambda o: o["type"])
@pytest.mark.parametrize("settings", [{"type": "vp", "steps": 50}, {"type": "edm"}, {"type": "flow", "shift": 3.0}], ids=str)
def test_times_are_legal_and_grow_with_the_number(options: dict[str, Any], settings: dict[str, Any]) -> None:
    process, uniform = create_process(settings), torch.tensor([0.0, 1e-9, 0.2, 0.5, 0.9, 1 - 2**-24], dtype=torch.float64)
    if options["type"] == "loss_second_moment" and not process.discrete:
        with pytest.raises(ConfigurationError, match="no timesteps"):
            drawn(options, process, uniform)
        return
    times = drawn(options, process, uniform)
    assert (times.diff() >= 0).all()
    level = process.level(times)
    assert torch.isfinite(level.alpha).all() and torch.isfinite(level.sigma).all()
    assert (level.sigma > 0).all() or settings["type"] == "flow"
    assert (level.alpha >= 0).all()


def test_log_normal_is_that_of_edm() -> None:
    logs = drawn({"type": "log_normal"}, create_process({"type": "edm"})).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=1e-6)
    assert logs.std().item() == pytest.approx(1.2, rel=1e-3)


def test_log_normal_of_timesteps_takes_the_nearest() -> None:
    process = create_process({"type": "vp", "steps": 1000})
    times = drawn({"type": "log_normal", "mean": 0.0, "std": 0.5}, process)
    assert not times.is_floating_point()
    assert process.level(times).ratio.log().median().item() == pytest.approx(0, abs=0.01)


def test_logit_normal_is_that_of_stable_diffusion_3() -> None:
    times = drawn({"type": "logit_normal", "mean": -0.5, "std": 0.8})
    logits = (times / (1 - times)).log()
    assert logits.mean().item() == pytest.approx(-0.5, abs=1e-6)
    assert logits.std().item() == pytest.approx(0.8, rel=1e-3)
    shifted = drawn({"type": "logit_normal"}, create_process({"type": "flow", "shift": 3.0}))
    plain = drawn({"type": "logit_normal"})
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain))  # k t / (1 + (k - 1) t)


def test_mode_by_its_formula() -> None:
    scale = 1.29
    wanted = [1 - u - scale * (math.cos(math.pi / 2 * u) ** 2 - 1 + u) for u in (0.9, 0.5, 0.2)]
    assert drawn({"type": "mode"}, uniform=1 - torch.tensor([0.9, 0.5, 0.2])).tolist() == pytest.approx(wanted, rel=1e-6)
    middle = ((drawn({"type": "mode"}) - 0.5).abs() < 0.05).double().mean()
    assert middle > 0.2  # twice as often as evenly
    with pytest.raises(ConfigurationError, match=r"at most 2 / \(pi - 2\)"):
        create_times({"type": "mode", "scale": 2.0})


def test_cosmap_by_its_density() -> None:
    times = drawn({"type": "cosmap"})
    for low in (0.0, 0.3, 0.6):
        share = ((times >= low) & (times < low + 0.1)).double().mean().item()
        t = torch.linspace(low, low + 0.1, 1001, dtype=torch.float64)
        density = 2 / (math.pi * (1 - 2 * t + 2 * t * t))
        assert share == pytest.approx(torch.trapezoid(density, t).item(), abs=2e-4)


def test_stratified_numbers_give_stratified_times() -> None:
    """Of any neighbours in the run, each eighth of the distribution gets its share."""
    bounds = drawn({"type": "logit_normal"}, uniform=torch.arange(1, 8) / 8)
    for start in (0, 999):
        times = drawn({"type": "logit_normal"}, uniform=low_discrepancy(torch.arange(start, start + 64), 0.3))
        counts = torch.bincount(torch.bucketize(times, bounds), minlength=8)
        assert counts.min() >= 7 and counts.max() <= 9


def test_curriculum_widens_from_noise() -> None:
    options = {"type": "curriculum", "until": 100, "stages": 5}
    for step, least in ((0, 0.8), (24, 0.8), (25, 0.6), (50, 0.4), (99, 0.2), (100, 0.0), (1000, 0.0)):
        times = drawn(options, step=step)
        assert times.min().item() == pytest.approx(least, abs=1e-4)
        assert times.max().item() == pytest.approx(1, abs=1e-4)
        assert times.mean().item() == pytest.approx((1 + least) / 2, abs=1e-4)


def test_curriculum_of_another_distribution() -> None:
    options = {"type": "curriculum", "until": 10, "stages": 2, "of": {"type": "logit_normal"}}
    assert drawn(options).min().item() == pytest.approx(0.5, abs=1e-3)
    assert torch.allclose(drawn(options, step=10), drawn({"type": "logit_normal"}))


# ------------------------------------------------------------------------------------------------------------ drawn by loss


def warm(steps: int = 8, history: int = 4) -> tuple[Any, Process, Tensor]:
    times: Any = create_times({"type": "loss_second_moment", "history": history, "uniform_prob": 0.05})
    process = create_process({"type": "vp", "schedule": "cosine", "steps": steps})
    times.draw(process, EVEN, 0)
    losses = torch.linspace(0.1, 5, steps, dtype=torch.float64)
    for _ in range(history):
        times.observe(torch.arange(steps), losses)
    return times, process, losses


def test_even_until_every_timestep_is_known() -> None:
    times, process, _ = warm()
    fresh: Any = create_times({"type": "loss_second_moment", "history": 4})
    first = fresh.draw(process, EVEN, 0)
    assert torch.bincount(first.times).tolist() == [2500] * 8
    assert torch.equal(first.weights, torch.ones_like(EVEN))
    fresh.observe(torch.arange(7).repeat(4), torch.ones(28))
    assert torch.equal(fresh.probabilities(), torch.full((8,), 1 / 8, dtype=torch.float64))
    assert times.probabilities()[7] > 10 * times.probabilities()[0]


def test_importance_weights_are_unbiased() -> None:
    times, process, losses = warm()
    even = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    found = times.draw(process, even, 0)
    assert (found.weights * losses[found.times]).mean().item() == pytest.approx(losses.mean().item(), rel=1e-4)
    assert losses[found.times].mean() > 1.2 * losses.mean()


def test_a_batch_counts_as_its_samples_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    together, _, _ = warm(5, 3)
    single, _, _ = warm(5, 3)
    for _ in range(6):
        drawn_times = torch.randint(0, 3, (11,), generator=generator)  # more than three of one timestep
        losses = torch.rand(11, generator=generator)
        together.observe(drawn_times, losses)
        for t, loss in zip(drawn_times.split(1), losses.split(1), strict=True):
            single.observe(t, loss)
        assert torch.equal(together.probabilities(), single.probabilities())
    assert torch.equal(together.state_dict()["seen"], single.state_dict()["seen"])


def test_goes_on_from_a_checkpoint() -> None:
    times, process, _ = warm()
    copy: Any = create_times({"type": "loss_second_moment", "history": 4, "uniform_prob": 0.05})
    copy.load_state_dict({name: value.clone() for name, value in times.state_dict().items()})
    for each in (times, copy):
        each.observe(torch.tensor([1, 1, 6]), torch.tensor([9.0, 2.0, 3.0]))
    assert torch.equal(times.draw(process, EVEN, 0).times, copy.draw(process, EVEN, 0).times)
    curriculum: Any = create_times({"type": "curriculum", "until": 5, "of": {"type": "loss_second_moment", "history": 4}})
    curriculum.load_state_dict(times.state_dict())
    assert torch.equal(curriculum.state_dict()["losses"], times.state_dict()["losses"])
    copy.load_state_dict({})
    assert copy.state_dict() == {}


def test_another_history_or_process_is_refused() -> None:
    times, _, _ = warm()
    other: Any = create_times({"type": "loss_second_moment", "history": 5})
    with pytest.raises(ConfigurationError, match="set history: 4"):
        other.load_state_dict(times.state_dict())
    with pytest.raises(ConfigurationError, match="8 timesteps are kept, but the process has 9"):
        times.draw(create_process({"type": "vp", "schedule": "cosine", "steps": 9}), EVEN, 0)
