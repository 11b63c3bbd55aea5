"""Learning-rate schedules as closed forms.

Each registered function takes its options and returns a function ``lr(s, lr0)``: the learning rate of update number s + 1,
where s is the number of completed steps and lr0 the group's initial learning rate. Nothing else is remembered, so nothing needs
saving and a run can start at any step. An option `total_steps` that is not given is the length of the run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, TypeAlias

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
def linear(
    *, total_steps: PositiveInt | None = None, final_factor: NonNegativeFloat = 0.0, warmup_steps: NonNegativeInt = 0
) -> LearningRate:
    """A straight line: ``lr = lr0 (1 + (final_factor - 1) min((s - w) / (N - w), 1))`` with N = total_steps, w = warmup_steps.

    Before s = w the rate goes up in a straight line, ``lr0 (s + 1) / w``, so that it falls from all of lr0; `train.warmup_iter`
    multiplies a line that has begun to fall.

    Args:
        total_steps: N; the length of the run by default.
        final_factor: rate at the end, as a multiple of lr0.
        warmup_steps: w; 0 is off.
    """
    end = _after("linear", total_steps, warmup_steps)

    def learning_rate(step: int, initial: float) -> float:
        if step < warmup_steps:
            return initial * warmup_factor(step, warmup_steps)
        return initial * (1 + (final_factor - 1) * min((step - warmup_steps) / end, 1.0))

    return learning_rate


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


@SCHEDULES.register("wsd", "warmup_stable_decay")
def warmup_stable_decay(
    *,
    total_steps: PositiveInt | None = None,
    warmup_steps: NonNegativeInt = 0,
    decay_share: Fraction = 0.2,
    decay: Literal["1-sqrt", "linear", "cosine"] = "1-sqrt",
    final_factor: NonNegativeFloat = 0.0,
) -> LearningRate:
    """Up, constant, down at the end: ``lr = lr0 (f + (1 - f) d(p))``, p the share of the decay that is done.

    With N = total_steps, the decay takes the last decay_share N steps; before it the rate is lr0, and before s = warmup_steps
    it is ``lr0 (s + 1) / warmup_steps``. Since all before the decay does not depend on N, a run that is to be longer goes on
    from a checkpoint before its decay.

    Args:
        total_steps: N; the length of the run by default.
        warmup_steps: length of the way up; 0 is off.
        decay_share: length of the way down, as a share of N.
        decay: d(p): ``1 - sqrt(p)``, ``1 - p`` or ``(1 + cos(pi p)) / 2``.
        final_factor: f, rate at the end as a multiple of lr0.

    Source: Hu et al., "MiniCPM", arXiv 2404.06395, section 4; the shape 1-sqrt: Hägele et al., "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", arXiv 2405.18392, section 3.
    """
    end = _total("wsd", total_steps)
    length = decay_share * end
    shape: Callable[[float], float] = {
        "1-sqrt": lambda p: 1 - math.sqrt(p),
        "linear": lambda p: 1 - p,
        "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    }[decay]

    def learning_rate(step: int, initial: float) -> float:
        done = min(max(step - (end - length), 0.0) / length, 1.0) if length else 0.0
        factor = final_factor + (1 - final_factor) * shape(done)
        return initial * factor * warmup_factor(step, warmup_steps)

    return learning_rate


@SCHEDULES.register("infinite")
def infinite(
    *,
    cooldown_steps: PositiveInt,
    warmup_steps: NonNegativeInt = 0,
    constant_factor: PositiveFloat = 0.5,
    anneal_from: NonNegativeInt | None = None,
    anneal_steps: PositiveInt | None = None,
    final_factor: NonNegativeFloat = 0.0,
) -> LearningRate:
    """Up, down to a constant that has no end, and from there to nearly nothing whenever a result is wanted.

    Linear up to lr0 over warmup_steps; half a cosine to ``c = constant_factor lr0`` over the next cooldown_steps; then c. From
    s = anneal_from on, ``c (final_factor lr0 / c)^p`` with p the share of anneal_steps that is done, or the same by a straight
    line where final_factor is 0.

    Args:
        cooldown_steps: length of the way down to the constant.
        warmup_steps: length of the way up; 0 is off.
        constant_factor: the constant, as a multiple of lr0.
        anneal_from: step at which the end begins; never by default.
        anneal_steps: length of the end; needed with `anneal_from`.
        final_factor: rate at the end, as a multiple of lr0.

    Source: Ibrahim et al., "Simple and Scalable Strategies to Continually Pre-train Large Language Models", arXiv 2403.08763,
    section 7.
    """
    if (anneal_from is None) != (anneal_steps is None):
        raise ConfigurationError("infinite: give both of anneal_from and anneal_steps, or none")
    if anneal_from is not None and anneal_from < warmup_steps + cooldown_steps:
        raise ConfigurationError(
            f"infinite: anneal_from is {anneal_from}, and warm-up and cool-down end at {warmup_steps + cooldown_steps}: "
            "begin later"
        )

    def learning_rate(step: int, initial: float) -> float:
        constant, final = constant_factor * initial, final_factor * initial
        if step < warmup_steps:
            return initial * warmup_factor(step, warmup_steps)
        if anneal_from is None or anneal_steps is None or step < anneal_from:
            return _cosine(initial, constant, (step - warmup_steps) / cooldown_steps)
        done = min((step - anneal_from) / anneal_steps, 1.0)
        return constant * (final / constant) ** done if final > 0 else _straight(constant, final, done)

    return learning_rate


@SCHEDULES.register("rex")
def rex(*, total_steps: PositiveInt | None = None, beta: Fraction = 0.5) -> LearningRate:
    """Slowly down at first and fast at the end: ``lr = lr0 (1 - z) / (1 - beta z)`` with z = min(s / N, 1), N = total_steps.

    Args:
        total_steps: N; the length of the run by default.
        beta: how late it falls, below 1; 0 is a straight line.

    Source: Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule", arXiv 2107.04197,
    section 3 (beta 1/2).
    """
    if beta >= 1:
        raise ConfigurationError(f"rex: beta must be below 1, given: {beta}")
    end = _total("rex", total_steps)

    def learning_rate(step: int, initial: float) -> float:
        left = 1 - min(step / end, 1.0)
        return initial * left / (1 - beta + beta * left)

    return learning_rate


@SCHEDULES.register("cyclic_tradeoff")
class CyclicTradeoff:
    """Cosine cycles, each `growth` times as long as the last, that all end near zero: one run, a result for many budgets.

    Cycle i has ``T_i = first_cycle growth^i`` steps (rounded) and ``lr = m + (lr0 - m) (1 + cos(pi t / (T_i - 1))) / 2``, t
    being the steps since it began and m = min_factor lr0: lr0 at its first update, m at its last. After the last update of a
    cycle, at its trough, the run is validated and saved whatever `val_freq` and `save_checkpoint_freq` say. Figures at troughs
    rank methods and budgets; they are not those of a run that was planned for the budget.

    Args:
        first_cycle: T_0.
        growth: how much longer each cycle is than the one before.
        warmup_steps: steps of a straight way up to lr0 before the first cycle; 0 is off.
        min_factor: rate at a trough, as a multiple of lr0.

    Source: Portes et al., "Fast Benchmarking of Accuracy vs. Training Time with Cyclic Learning Rates", arXiv 2206.00832,
    section 3.
    """

    def __init__(
        self,
        *,
        first_cycle: PositiveInt,
        growth: PositiveFloat = 2.0,
        warmup_steps: NonNegativeInt = 0,
        min_factor: NonNegativeFloat = 0.0,
    ) -> None:
        if growth < 1:
            raise ConfigurationError(f"cyclic_tradeoff: growth must be 1 or more, given: {growth}")
        self.growth = growth
        self.warmup_steps = warmup_steps
        self.min_factor = min_factor
        self._ends = [warmup_steps, warmup_steps + first_cycle]  # of the warm-up and of each cycle
        self._length = float(first_cycle)

    def __call__(self, step: int, initial: float) -> float:
        """The learning rate of the update after `step` completed ones."""
        if step < self.warmup_steps:
            return initial * warmup_factor(step, self.warmup_steps)
        cycle = bisect_right(self._up_to(step + 1), step)
        start, end = self._ends[cycle - 1], self._ends[cycle]
        return _cosine(initial, self.min_factor * initial, (step - start) / max(end - start - 1, 1))

    def is_trough(self, step: int) -> bool:
        """Whether a cycle ends with completed step number `step`."""
        return step > self.warmup_steps and step in self._up_to(step)[1:]

    def _up_to(self, step: int) -> list[int]:
        while self._ends[-1] < step:
            self._length *= self.growth
            self._ends.append(self._ends[-1] + max(round(self._length), 1))
        return self._ends


@SCHEDULES.register("plateau")
class Plateau:
    """Lowers the rate when a validation figure has stopped getting better: ``lr = lr0 max(factor^n, min_factor)``.

    n grows by one when `patience` validations in a row were not better than the best one by `threshold` of its size, and then
    waits for `patience` others. It is part of checkpoints. It needs validations: set `train.val_freq`.

    Args:
        metric: figure of a validation, as metrics.jsonl has it.
        mode: whether more or less of it is better.
        set: name of the data set; the first one validated on by default.
        patience: validations without progress after which the rate falls.
        factor: what it is multiplied with.
        threshold: progress is more than this, as a share of the best figure.
        min_factor: least rate, as a multiple of lr0.
    """

    def __init__(
        self,
        *,
        metric: str,
        mode: Literal["max", "min"],
        set: str | None = None,
        patience: PositiveInt = 5,
        factor: Fraction = 0.5,
        threshold: NonNegativeFloat = 1e-4,
        min_factor: NonNegativeFloat = 0.0,
    ) -> None:
        self.metric = metric
        self.sign = 1 if mode == "max" else -1
        self.set = set
        self.patience = patience
        self.factor = factor
        self.threshold = threshold
        self.min_factor = min_factor
        self.best: float | None = None
        self.waited = 0
        self.falls = 0

    def __call__(self, step: int, initial: float) -> float:
        """The learning rate now, whatever the step."""
        del step
        return initial * max(self.factor**self.falls, self.min_factor)

    def observe(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Takes the figures of a validation, by set.

        Raises:
            ConfigurationError: the figure is not among them.
        """
        name = self.set or next(iter(figures), "")
        if self.metric not in figures.get(name, {}):
            there = "; ".join(f"{each}: {', '.join(values)}" for each, values in figures.items()) or "none"
            raise ConfigurationError(f"schedule plateau: no validation gives '{self.metric}' of '{name}'; there are: {there}")
        value = figures[name][self.metric]
        if self.best is None or self.sign * (value - self.best) > self.threshold * abs(self.best):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.falls, self.waited = self.falls + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {"best": self.best, "waited": self.waited, "falls": self.falls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`; an empty one is a new beginning."""
        self.best, self.waited, self.falls = state.get("best"), state.get("waited", 0), state.get("falls", 0)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _straight(start: float, end: float, progress: float) -> float:
    return start + (end - start) * min(progress, 1.0)


def _total(name: str, total_steps: int | None) -> int:
    if total_steps is None:
        raise ConfigurationError(f"{name}: give 'total_steps', since the length of the run is not known here")
    return total_steps


def _after(name: str, total_steps: int | None, warmup_steps: int) -> int:
    """Steps that are left behind a warm-up."""
    end = _total(name, total_steps)
    if warmup_steps >= end:
        raise ConfigurationError(f"{name}: a warm-up of {warmup_steps} steps leaves nothing of {end}: make it shorter")
    return end - warmup_steps


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
