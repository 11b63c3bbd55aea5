"""Learning-rate schedules against their formulas and against torch's schedulers."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dlas.errors import ConfigurationError
from dlas.optim import Schedule, build_schedule
from dlas.registry import SCHEDULES

NITER = 60

# Options that each registered schedule cannot do without.
MINIMAL: dict[str, dict[str, Any]] = {
    "constant": {},
    "MultiStepLR": {"gen_lr_steps": [20, 40], "lr_gamma": 0.5},
    "CosineAnnealingLR_Restart": {"T_period": [30]},
    "cosine": {},
    "linear": {},
    "polynomial": {},
    "inverse_sqrt": {"constant_steps": 25},
    "one_cycle": {},
    "wsd": {},
    "infinite": {"cooldown_steps": 20},
    "rex": {},
    "cyclic_tradeoff": {"first_cycle": 7},
    "plateau": {"metric": "psnr", "mode": "max"},
}
# The same for torch's, of which the file cannot configure those that are made of functions or other schedulers.
TORCH: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 7},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 50},
    "CosineAnnealingLR": {"T_max": 50},
    "CosineAnnealingWarmRestarts": {"T_0": 9},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.2},
    "OneCycleLR": {"max_lr": 0.3},
}


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr, "initial_lr": lr} for lr in rates or (0.1,)]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def rates(schedule: Schedule, opt: torch.optim.Optimizer, steps: range | list[int]) -> list[list[float]]:
    """Learning rates of the groups after `apply` at each step, with the updates between."""
    found = []
    for step in steps:
        schedule.apply(step)
        found.append([group["lr"] for group in opt.param_groups])
        opt.step()
    return found


def series(options: dict[str, Any], steps: int = NITER, lr: float = 0.1, **more: Any) -> list[float]:
    opt = optimizer(lr)
    return [lr for (lr,) in rates(build_schedule(options, opt, NITER, **more), opt, range(steps))]


def torch_series(make: Callable[[torch.optim.Optimizer], Any], steps: int = NITER) -> list[float]:
    opt = optimizer()
    scheduler = make(opt)
    found = []
    for _ in range(steps):
        found.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return found


# ---- every schedule ---------------------------------------------------------------------------------------------------------


def test_every_schedule_is_in_the_table() -> None:
    assert set(MINIMAL) == set(SCHEDULES.entries())
    for name in vars(torch.optim.lr_scheduler):
        if name.endswith("LR") and name not in ("LambdaLR", "MultiplicativeLR", "SequentialLR", "MultiStepLR"):
            assert name in TORCH


@pytest.mark.parametrize("name", [*MINIMAL, *TORCH])
@pytest.mark.parametrize("warmup", [-1, 5])
def test_is_finite_and_positive_over_a_run_for_every_group(name: str, warmup: int) -> None:
    options = {"type": name, **MINIMAL.get(name, TORCH.get(name, {}))}
    opt = optimizer(0.1, 0.02)
    found = rates(build_schedule(options, opt, NITER, warmup_iter=warmup), opt, range(NITER))
    assert all(math.isfinite(lr) and lr >= 0 for pair in found for lr in pair)
    assert found[0][0] > 0


@pytest.mark.parametrize("name", [each for each in MINIMAL if each != "plateau"])  # which is one of validations
def test_registered_schedules_are_functions_of_the_step(name: str) -> None:
    options = {"type": name, **MINIMAL[name]}
    opt = optimizer(0.1, 0.02)
    schedule = build_schedule(options, opt, NITER, warmup_iter=4)
    forward = rates(schedule, opt, range(NITER))
    assert rates(schedule, opt, list(reversed(range(NITER)))) == forward[::-1]
    assert schedule.state_dict() == {}


@pytest.mark.parametrize("name", [*MINIMAL, *TORCH])
def test_resumes_exactly(name: str) -> None:
    options = {"type": name, **MINIMAL.get(name, TORCH.get(name, {}))}
    opt = optimizer(0.1, 0.02)
    schedule = build_schedule(options, opt, NITER, warmup_iter=30)
    rates(schedule, opt, range(25))
    file = io.BytesIO()
    torch.save({"optimizer": opt.state_dict(), "schedule": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed_opt = optimizer(0.1, 0.02)
    resumed = build_schedule(options, resumed_opt, NITER, warmup_iter=30)
    resumed_opt.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["schedule"])
    assert rates(resumed, resumed_opt, range(25, NITER)) == rates(schedule, opt, range(25, NITER))


@pytest.mark.parametrize("name", list(MINIMAL))
def test_every_option_is_described(name: str) -> None:
    entry = SCHEDULES.find(name)
    lines = [line.strip() for line in entry.doc.splitlines()]
    assert all(any(line.startswith(f"{p.name}: ") for line in lines) for p in entry.parameters)


# ---- warm-up ----------------------------------------------------------------------------------------------------------------


def test_warmup_is_linear_and_full_at_its_last_update() -> None:
    found = series({"type": "constant"}, 8, warmup_iter=5)
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1])
    for off in (-1, 0, 1):
        assert series({"type": "constant"}, 3, warmup_iter=off) == [0.1] * 3


@pytest.mark.parametrize("name", list(TORCH))
def test_warmup_multiplies_what_torch_gives(name: str) -> None:
    options = {"type": name, **TORCH[name]}
    plain, warmed = series(options), series(options, warmup_iter=10)
    assert warmed == pytest.approx([lr * min(1, (s + 1) / 10) for s, lr in enumerate(plain)])


# ---- MultiStepLR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("milestones", [[10, 30], [5, 5, 20], [1], [100]])
def test_multi_step_equals_torch(milestones: list[int]) -> None:
    ours = series({"type": "MultiStepLR", "gen_lr_steps": milestones, "lr_gamma": 0.3})
    theirs = torch_series(lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, milestones, 0.3))
    assert ours == pytest.approx(theirs)


def test_multi_step_restarts_with_their_weights() -> None:
    options = {"gen_lr_steps": [10, 20, 30], "lr_gamma": 0.5, "restarts": [15, 30], "restart_weights": [0.8, 0.4]}
    found = series({"type": "MultiStepLR", **options}, lr=1.0)
    # just before and at each milestone and restart; the milestone at 30 coincides with a restart, which wins
    expected = {0: 1, 9: 1, 10: 0.5, 14: 0.5, 15: 0.8, 19: 0.8, 20: 0.4, 29: 0.4, 30: 0.4, 59: 0.4}
    assert {step: found[step] for step in expected} == pytest.approx(expected)
    del options["restart_weights"]
    assert series({"type": "MultiStepLR", **options}, lr=1.0)[15] == 1.0


def test_multi_step_warms_up_to_the_full_rate_and_can_be_forced() -> None:
    options = {"type": "MultiStepLR", "gen_lr_steps": [50], "lr_gamma": 0.5, "warmup_steps": 4}
    assert series(options, 6, lr=1.0) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert series({**options, "force_lr": 0.007}) == [0.007] * NITER


# ---- CosineAnnealingLR_Restart ----------------------------------------------------------------------------------------------


def test_cosine_restart_equals_torch_within_the_first_period() -> None:
    ours = series({"type": "CosineAnnealingLR_Restart", "T_period": [40], "eta_min": 0.01}, 41)
    theirs = torch_series(lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40, 0.01), 41)
    assert ours == pytest.approx(theirs)


def test_cosine_restart_at_its_edges() -> None:
    options = {"T_period": [10, 20], "warmup": 5, "eta_min": 0.1, "restarts": [20], "restart_weights": [0.6]}
    found = series({"type": "CosineAnnealingLR_Restart", **options}, lr=1.0)
    expected = {
        0: 0.2, 3: 0.8, 4: 1.0,  # warm-up
        5: 1.0, 10: 0.55, 15: 0.1, 19: 0.1,  # first cycle, then the floor
        20: 0.6, 30: 0.35, 35: 0.1 + 0.25 * (1 + math.cos(0.75 * math.pi)), 40: 0.1, 59: 0.1,
    }  # fmt: skip
    assert {step: found[step] for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"T_period": [10], "restarts": [20]}, "1 restarts make 2 cycles, but T_period has 1"),
        ({"T_period": [10, 10], "restarts": [20], "restart_weights": [1.0, 1.0]}, "restart_weights has 2 entries for 1"),
        ({"T_period": [10, 10], "restarts": [20], "warmup": 20}, "come after step 20"),
        ({"T_period": [10, 10, 10], "restarts": [20, 20]}, "must ascend"),
    ],
)
def test_faulty_cycles_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_schedule({"type": "CosineAnnealingLR_Restart", **options}, optimizer(), NITER)


# ---- the others -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pct_start": 0.1, "div_factor": 10.0, "final_div_factor": 50.0},
        {"anneal_strategy": "linear", "pct_start": 0.5},
        {"total_steps": 30},
    ],
)
def test_one_cycle_equals_torch(options: dict[str, Any]) -> None:
    total = options.get("total_steps", NITER)
    ours = series({"type": "one_cycle", **options}, total)
    torch_options = {"total_steps": total, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opt = optimizer()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, **torch_options)
    theirs = []
    for step in range(total):
        theirs.append(opt.param_groups[0]["lr"])
        opt.step()
        if step < total - 1:
            scheduler.step()
    assert ours == pytest.approx(theirs)


def test_one_cycle_ends() -> None:
    found = series({"type": "one_cycle", "total_steps": 40, "pct_start": 0.25, "final_div_factor": 100.0}, lr=1.0)
    assert found[0] == pytest.approx(1 / 25) and found[9] == pytest.approx(1.0)
    assert found[39:] == pytest.approx([1 / 2500] * 21)
    assert all(math.isfinite(lr) for pct in (0.0, 1.0) for lr in series({"type": "one_cycle", "pct_start": pct}))


def test_cosine_linear_and_polynomial_reach_their_ends() -> None:
    for options, middle, end in (
        ({"type": "cosine", "total_steps": 40, "eta_min": 0.2}, 0.6, 0.2),
        ({"type": "linear", "total_steps": 40, "final_factor": 0.5}, 0.75, 0.5),
        ({"type": "polynomial", "total_steps": 40, "power": 2.0, "final_factor": 0.2}, 0.2 + 0.8 * 0.25, 0.2),
    ):
        found = series(options, lr=1.0)
        assert (found[0], found[20], found[40], found[59]) == pytest.approx((1.0, middle, end, end))
    assert series({"type": "linear"}, lr=1.0)[30] == pytest.approx(0.5)  # over the run by default


def test_the_inverse_root_is_constant_first() -> None:
    found = series({"type": "inverse_sqrt", "constant_steps": 9}, lr=0.6)
    assert found[:10] == pytest.approx([0.6] * 10)
    assert (found[16], found[36]) == pytest.approx((0.6 * 3 / 4, 0.6 * 3 / 6))


def test_a_total_that_nobody_knows_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match="give 'total_steps'"):
        SCHEDULES.create("cosine", {})


# ---- torch's and names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TORCH))
def test_torch_schedulers_give_their_own_values(name: str) -> None:
    options = {**TORCH[name], **({"total_steps": NITER + 1} if name == "OneCycleLR" else {})}
    cls = getattr(torch.optim.lr_scheduler, name)
    assert series({"type": name, **options}) == pytest.approx(torch_series(lambda opt: cls(opt, **options)))


def test_torch_schedulers_cannot_go_back() -> None:
    opt = optimizer()
    schedule = build_schedule({"type": "StepLR", "step_size": 7}, opt, NITER)
    rates(schedule, opt, range(4))
    schedule.apply(3)  # once more for the same step is no step
    with pytest.raises(ValueError, match="StepLR is at step 3 and cannot go back to 2"):
        schedule.apply(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs 'type'"),
        ({"type": "MultistepLR"}, "did you mean 'MultiStepLR'"),
        ({"type": "cosine", "eta_mn": 1}, "did you mean 'eta_min'"),
        ({"type": "StepLR", "step_sze": 1}, "schedule 'StepLR' has no option 'step_sze'; did you mean 'step_size'"),
        ({"type": "StepLR"}, "step_size"),
        ({"type": "CosineAnnealingWarmRestarts", "T_0": -1}, "Expected positive integer T_0"),
        ({"type": "LambdaLR"}, "cannot be configured in a file"),
        ({"type": "ReduceLROnPlateau"}, "cannot be configured in a file"),
    ],
)
def test_faulty_schedules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_schedule(options, optimizer(), NITER)


def test_groups_keep_their_proportions() -> None:
    opt = optimizer(0.1, 0.05)
    before = copy.deepcopy([group["initial_lr"] for group in opt.param_groups])
    for first, second in rates(build_schedule({"type": "cosine"}, opt, NITER), opt, range(NITER)):
        assert second == pytest.approx(first / 2)
    assert [group["initial_lr"] for group in opt.param_groups] == before
