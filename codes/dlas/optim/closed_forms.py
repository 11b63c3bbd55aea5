"""Learning-rate schedules as closed forms.

Each registered function takes its options and returns a function ``lr(s, lr0)``: the learning rate of update number s + 1,
where s is the number of completed steps and lr0 the group's initial learning rate. Nothing else is remembered, so nothing needs
saving and a run can start at any step. An option `total_steps` that is not given is the length of the run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias

from dlas.errors import ConfigurationError
from dlas.registry import SCHEDULES
from dlas.types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

LearningRate: TypeAlias = Callable[[int, float], float]
"""(completed steps, initial learning rate of the group) -> learning rate of the next update."""


def warmup_factor(step: int, warmup: int) -> float:
    """``min(1, (s + 1) / warmup)``, or 1 where `warmup` is not positive.

    Update number 1 is made at ``lr0 / warmup``; update number `warmup` is the first at the full rate.
    """
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0


@SCHEDULES.register("constant")
def constant() -> LearningRate:
    """``lr = lr0``."""
    return lambda step, initial: initial


@SCHEDULES.register("MultiStepLR")
def multi_step(
    *,
    gen_lr_steps: list[PositiveInt],
    lr_gamma: PositiveFloat,
    restarts: list[PositiveInt] | None = None,
    restart_weights: list[PositiveFloat] | None = None,
    warmup_steps: NonNegativeInt = 0,
    force_lr: PositiveFloat | None = None,
) -> LearningRate:
    """Lowers the rate at milestones: ``lr = lr0 * w * gamma^n * min(1, (s + 1) / warmup_steps)``.

    n is the number of milestones in (r, s], where r is the newest restart not after s and w its weight (r = 0 and w = 1 before
    the first). Without restarts and warm-up this is torch's MultiStepLR. Unlike in DL-Art-School, warm-up starts at the first
    step and ends at the full rate, there is no restart that is not asked for, and milestones count wherever a run starts.

    Args:
        gen_lr_steps: the milestones, in completed steps; one that is named twice counts twice.
        lr_gamma: gamma.
        restarts: steps at which the rate starts anew, ascending.
        restart_weights: w of each restart; 1 by default.
        warmup_steps: length of a linear warm-up; 0 is off.
        force_lr: this rate always, whatever the other options say.
    """
    milestones = sorted(gen_lr_steps)
    starts, weights = _cycles("MultiStepLR", 0, restarts, restart_weights)

    def learning_rate(step: int, initial: float) -> float:
        if force_lr is not None:
            return force_lr
        cycle = bisect_right(starts, step) - 1
        passed = bisect_right(milestones, step) - bisect_right(milestones, starts[cycle])
        return initial * weights[cycle] * lr_gamma**passed * warmup_factor(step, warmup_steps)

    return learning_rate


@SCHEDULES.register("CosineAnnealingLR_Restart")
def cosine_restart(
    *,
    T_period: list[PositiveInt],  # noqa: N803 -- the name of the option
    warmup: NonNegativeInt = 0,
    eta_min: NonNegativeFloat = 0.0,
    restarts: list[PositiveInt] | None = None,
    restart_weights: list[PositiveFloat] | None = None,
) -> LearningRate:
    """Half a cosine down to `eta_min`, again after each restart: ``lr = eta_min + (w lr0 - eta_min) (1 + cos(pi t / T)) / 2``.

    t = min(s - r, T), where r is the newest restart not after s, w its weight and T its period. The first cycle begins after
    the warm-up (r = warmup, w = 1), before which ``lr = lr0 (s + 1) / warmup``. Unlike in DL-Art-School, warm-up is a ramp and
    not a delay, the rate stays at `eta_min` when a period is over (there it rises again), and there is no restart that is not
    asked for.

    Args:
        T_period: period of the first cycle and of the one after each restart, in steps.
        warmup: steps of linear warm-up before the first cycle.
        eta_min: rate at the end of a period, the same for all groups.
        restarts: steps at which a new cycle begins, ascending, after the warm-up.
        restart_weights: w of each restart; 1 by default.

    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983, equation 5.
    """
    starts, weights = _cycles("CosineAnnealingLR_Restart", warmup, restarts, restart_weights)
    if len(T_period) != len(starts):
        raise ConfigurationError(
            f"CosineAnnealingLR_Restart: {len(starts) - 1} restarts make {len(starts)} cycles, but T_period has "
            f"{len(T_period)} entries: {T_period}"
        )

    def learning_rate(step: int, initial: float) -> float:
        if step < warmup:
            return initial * warmup_factor(step, warmup)
        cycle = bisect_right(starts, step) - 1
        return _cosine(weights[cycle] * initial, eta_min, (step - starts[cycle]) / T_period[cycle])

    return learning_rate


@SCHEDULES.register("cosine")
def cosine(*, total_steps: PositiveInt | None = None, eta_min: NonNegativeFloat = 0.0) -> LearningRate:
    """Half a cosine: ``lr = eta_min + (lr0 - eta_min) (1 + cos(pi s / N)) / 2`` with N = total_steps, then `eta_min`.

    Args:
        total_steps: N; the length of the run by default.
        eta_min: rate at the end, the same for all groups.

    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983, equation 5.
    """
    end = _total("cosine", total_steps)
    return lambda step, initial: _cosine(initial, eta_min, step / end)


@SCHEDULES.register("linear")
def linear(*, total_steps: PositiveInt | None = None, final_factor: NonNegativeFloat = 0.0) -> LearningRate:
    """A straight line: ``lr = lr0 (1 + (final_factor - 1) min(s / N, 1))`` with N = total_steps.

    Args:
        total_steps: N; the length of the run by default.
        final_factor: rate at the end, as a multiple of lr0.
    """
    end = _total("linear", total_steps)
    return lambda step, initial: initial * (1 + (final_factor - 1) * min(step / end, 1.0))


@SCHEDULES.register("polynomial")
def polynomial(
    *, total_steps: PositiveInt | None = None, power: PositiveFloat = 0.9, final_factor: NonNegativeFloat = 0.0
) -> LearningRate:
    """``lr = lr0 (f + (1 - f) (1 - min(s / N, 1))^power)`` with N = total_steps and f = final_factor.

    Args:
        total_steps: N; the length of the run by default.
        power: the exponent; 1 is a straight line.
        final_factor: rate at the end, as a multiple of lr0.

    Source: Chen et al., "DeepLab", arXiv 1606.00915, section 4.1.2 (power 0.9, final_factor 0).
    """
    end = _total("polynomial", total_steps)
    return lambda step, initial: initial * (final_factor + (1 - final_factor) * (1 - min(step / end, 1.0)) ** power)


@SCHEDULES.register("inverse_sqrt")
def inverse_sqrt(*, constant_steps: PositiveInt) -> LearningRate:
    """At first constant, then falling with the root of the steps: ``lr = lr0 / sqrt(max(1, s / constant_steps))``.

    It has no end, so a run may go on as long as it pays. `warmup_iter` gives it a linear warm-up.

    Args:
        constant_steps: steps before it falls.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696.
    """
    return lambda step, initial: initial / math.sqrt(max(1.0, step / constant_steps))


@SCHEDULES.register("one_cycle")
def one_cycle(
    *,
    total_steps: PositiveInt | None = None,
    pct_start: Fraction = 0.3,
    div_factor: PositiveFloat = 25.0,
    final_div_factor: PositiveFloat = 10000.0,
    anneal_strategy: Literal["cos", "linear"] = "cos",
) -> LearningRate:
    """Up to the optimiser's learning rate and down far below where it began, in one cycle over the run.

    Between ``a = lr0 / div_factor`` at s = 0, lr0 at ``s = pct_start N - 1`` and ``b = a / final_div_factor`` at ``s = N - 1``
    and after, with N = total_steps: the values of torch's OneCycleLR with max_lr = lr0. Momentum does not change.

    Args:
        total_steps: N; the length of the run by default.
        pct_start: share of the run that goes up.
        div_factor: lr0 over the rate at the beginning.
        final_div_factor: rate at the beginning over the rate at the end.
        anneal_strategy: half cosines or straight lines between the three points.

    Source: Smith and Topin, "Super-Convergence", arXiv 1708.07120, section 3.
    """
    end = _total("one_cycle", total_steps) - 1
    peak = pct_start * (end + 1) - 1
    between = _cosine if anneal_strategy == "cos" else _straight

    def learning_rate(step: int, initial: float) -> float:
        low = initial / div_factor
        if step < peak:
            return between(low, initial, step / peak)
        # A run of one step, or one that only goes up, has no way down.
        return between(initial, low / final_div_factor, (step - peak) / (end - peak) if end > peak else 0.0)

    return learning_rate


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _straight(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(progress, 1.0)


def _total(name: str, total_steps: int | None) -> int:
    if total_steps is None:
        raise ConfigurationError(f"{name}: give 'total_steps', since the length of the run is not known here")
    return total_steps


def _cycles(
    name: str, first: int, restarts: list[int] | None, restart_weights: list[float] | None
) -> tuple[list[int], list[float]]:
    """First step and weight of every cycle, beginning with the one that no restart begins."""
    starts = [first, *(restarts or [])]
    weights = [1.0, *(restart_weights or [1.0] * (len(starts) - 1))]
    if len(weights) != len(starts):
        raise ConfigurationError(f"{name}: restart_weights has {len(weights) - 1} entries for {len(starts) - 1} restarts")
    if any(after <= before for before, after in pairwise(starts)):
        raise ConfigurationError(f"{name}: restarts must ascend and come after step {first}, given: {restarts}")
    return starts, weights
