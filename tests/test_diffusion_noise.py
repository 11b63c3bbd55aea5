"""Noise assignment: what is assigned is nearest, and decided before the noisy sample and the target are made."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dlas.context import Context
from dlas.diffusion import create_process
from dlas.diffusion.noise import Assignment, assigned, draw_noise, dropped, nearest_of, without_condition
from dlas.diffusion.training import Objective

ASSIGNMENTS: tuple[Assignment, ...] = ("independent", "assignment", "nearest")


def data(count: int = 5) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity", "edm", "previous_x"])
def test_sample_and_target_hold_the_assigned_noise(assignment: Assignment, prediction: Any) -> None:
    """The target is that of the noisy sample: read back, it is the data, and what is left is the noise that was assigned."""
    x0 = data()
    noise = draw_noise(x0, Context({}, seed=1, positions=range(5)).randn, assignment, offset=0.1)
    objective = Objective(create_process({"type": "vp", "schedule": "cosine", "steps": 20}), prediction)
    times = torch.tensor([3, 6, 9, 12, 15])
    question = objective.ask(x0, noise, times)
    assert torch.allclose(objective.x0_of(question.target, question.x, times), x0, atol=1e-4)
    level = objective.process.level(times).like(x0)
    assert torch.allclose((question.x - level.alpha * x0) / level.sigma, noise, atol=1e-4)
    later = objective.ask(x0, noise.roll(1, 0), times)  # a target of noise that is permuted afterwards would be told
    assert not torch.allclose(objective.x0_of(later.target, question.x, times), x0, atol=0.1) or prediction == "x0"


def test_assignment_is_the_best_of_all_permutations() -> None:
    x0 = data()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))

    def total(other: Tensor) -> float:
        return (x0 - other).flatten(1).norm(dim=1).sum().item()

    found = assigned(x0, noise)
    best = min(total(noise[list(order)]) for order in itertools.permutations(range(5)))
    assert total(found) == pytest.approx(best, rel=1e-6)
    assert total(found) < total(noise)
    assert sorted(found.flatten(1).sum(1).tolist()) == sorted(noise.flatten(1).sum(1).tolist())


def test_nearest_is_nearest_of_its_own_candidates() -> None:
    x0, candidates = data(), torch.randn(6, 5, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    found = nearest_of(x0, lambda k: candidates[k], 6)
    distances = (candidates - x0).flatten(2).norm(dim=2)
    assert torch.equal(found, candidates[distances.argmin(0), torch.arange(5)])


@pytest.mark.parametrize("assignment", ["independent", "nearest"])
def test_noise_is_the_same_however_a_batch_is_cut(assignment: Assignment) -> None:
    def noise(positions: range) -> Tensor:
        context = Context({}, seed=1, positions=positions)
        return draw_noise(data()[positions.start : positions.stop], context.randn, assignment, 3, 0.1)

    assert torch.equal(torch.cat((noise(range(2)), noise(range(2, 5)))), noise(range(5)))


def test_offset_is_one_number_a_channel() -> None:
    x0 = torch.zeros(400, 2, 8, 8)
    plain, moved = (draw_noise(x0, Context({}, seed=1, positions=range(400)).randn, offset=o) for o in (0.0, 0.5))
    difference = moved - plain
    assert torch.allclose(difference, difference[:, :, :1, :1].expand_as(difference), atol=1e-6)
    assert difference.std().item() == pytest.approx(0.5, rel=0.1)
    assert abs(torch.corrcoef(difference[:, :, 0, 0].T)[0, 1].item()) < 0.2


def test_unknown_assignment_is_named() -> None:
    with pytest.raises(ValueError, match="given: 'hungarian'"):
        draw_noise(data(), lambda shape, name: data(), "hungarian")  # type: ignore[arg-type]


def test_condition_is_dropped_as_often_as_said() -> None:
    drop = dropped((torch.arange(100) + 0.5) / 100, 0.15)
    assert drop.sum() == 15
    assert not dropped(torch.zeros(3), 0.0).any()
    condition, null = torch.ones(3, 4, 2), torch.tensor([7.0, 8.0])
    found = without_condition(condition, null, torch.tensor([False, True, False]))
    assert torch.equal(found[1], null.expand(4, 2))
    assert torch.equal(found[[0, 2]], condition[[0, 2]])
    labels = without_condition(torch.tensor([3, 4]), torch.tensor(10), torch.tensor([True, False]))
    assert labels.tolist() == [10, 4]
