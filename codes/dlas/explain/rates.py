"""Learning rates over a run, from the closed forms of the schedules; torch's own schedulers are stepped through."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlas.config.schema import Config, ScheduleConfig
from dlas.optim.closed_forms import warmup_factor
from dlas.registry import SCHEDULES

# A scheduler of torch has no closed form: every step up to the last must be taken.
_MOST_STEPS = 200_000
_SAMPLES = 2_000
_MOST_PIECES = 12


@dataclass(frozen=True)
class Rates:
    """Learning rates of one parameter group of a step.

    Args:
        step: of the file.
        group: name under `param_groups`; empty for the step's own rate.
        schedule: name of the schedule.
        at: completed iterations -> rate of the next update.
        length: iterations of the run.
        unknown: why there is no `at`; empty where there is one.
    """

    step: str
    group: str
    schedule: str
    at: Callable[[int], float]
    length: int
    unknown: str = ""

    def samples(self, count: int = _SAMPLES) -> list[tuple[int, float]]:
        """(iteration, rate), evenly spaced, both ends included."""
        last = self.length - 1
        positions = sorted({round(last * i / max(1, count - 1)) for i in range(count)})
        return [(s, self.at(s)) for s in positions]

    def pieces(self) -> list[tuple[int, float]] | None:
        """For a rate that is constant in pieces: the first iteration and the rate of each. None for others."""
        samples = self.samples()
        found = samples[:1]
        for before, after in itertools.pairwise(samples):
            if before[1] != after[1]:
                found.append((self._first_with(after[1], before[0], after[0]), after[1]))
            if len(found) > _MOST_PIECES:
                return None
        return found

    def peak(self) -> tuple[int, float]:
        """The first iteration with the highest rate."""
        samples = self.samples()
        best = max(range(len(samples)), key=lambda i: (samples[i][1], -i))
        low, high = samples[max(0, best - 1)][0], samples[min(len(samples) - 1, best + 1)][0]
        return max(((s, self.at(s)) for s in range(low, high + 1)), key=lambda point: (point[1], -point[0]))

    def _first_with(self, rate: float, before: int, after: int) -> int:
        while after - before > 1:
            middle = (before + after) // 2
            if self.at(middle) == rate:
                after = middle
            else:
                before = middle
        return after


def learning_rates(config: Config) -> list[Rates]:
    """The rates of every step, then of its parameter groups that have a rate of their own."""
    if config.train is None:
        return []
    found = []
    for name, step in config.steps.items():
        scheme = step.lr_scheme or config.train.lr_scheme
        groups = {"": step.optimizer_params.get("lr")}
        given = step.optimizer_params.get("param_groups")
        for group, options in (given if isinstance(given, dict) else {}).items():
            if isinstance(options, dict) and "lr" in options:
                groups[group] = options["lr"]
        for group, initial in groups.items():
            found.append(_rates(name, group, scheme, initial, config.train.niter, config.train.warmup_iter))
    return found


def _rates(step: str, group: str, scheme: ScheduleConfig | None, initial: Any, length: int, warmup: int) -> Rates:
    schedule = scheme.type if scheme else "constant"
    if not isinstance(initial, int | float):
        unknown = "the optimizer's own default, since 'lr' is not given"
        return Rates(step, group, schedule, lambda s: 0.0, length, unknown)
    options = dict(scheme.options) if scheme else {}
    if schedule not in SCHEDULES:
        return _of_torch(step, group, schedule, options, float(initial), length, warmup)
    if SCHEDULES.find(schedule).parameter("total_steps"):
        options.setdefault("total_steps", length)
    closed_form = SCHEDULES.create(schedule, options)
    if hasattr(closed_form, "observe"):
        words = f"{initial} at first; it is lowered when validations of {options['metric']} stop getting better"
        return Rates(step, group, schedule, lambda s: 0.0, length, words)
    return Rates(step, group, schedule, lambda s: warmup_factor(s, warmup) * closed_form(s, float(initial)), length)


def _of_torch(step: str, group: str, schedule: str, options: dict[str, Any], initial: float, length: int, warmup: int) -> Rates:
    def unknown(reason: str) -> Rates:
        return Rates(step, group, schedule, lambda s: 0.0, length, reason)

    if length > _MOST_STEPS:
        return unknown(f"torch's {schedule} must be stepped through, which is not done for more than {_MOST_STEPS} iterations")
    try:
        import torch
    except ImportError:
        return unknown(f"torch's {schedule} cannot be evaluated where torch is not installed")
    from dlas.optim.schedules import build_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=initial)
    optimizer.param_groups[0]["initial_lr"] = initial
    built = build_schedule({"type": schedule, **options}, optimizer, length, warmup_iter=warmup)
    values = []
    for s in range(length):
        optimizer.step()  # nothing has a gradient; torch warns of a scheduler that steps before its optimiser
        built.apply(s)
        values.append(float(optimizer.param_groups[0]["lr"]))
    return Rates(step, group, schedule, values.__getitem__, length)
