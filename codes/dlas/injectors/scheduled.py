"""A number that changes over the run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS, nearest
from dlas.types import StateOut


@INJECTORS.register("scheduled_scalar")
class ScheduledScalarInjector(Injector):
    """Writes a Python float that is a function of s, the number of completed steps.

    Args:
        out: the number.
        scheduler: ``{type: ..., ...}``, one of

            - ``fixed``: `weight` always.
            - ``linear_decay``: `initial_weight` until `start_step`, then down in a straight line to `lower_bound`, which is
              reached `steps` steps later and kept.
            - ``sinusoidal``: `upper_weight` until `start_step`, then a cosine between `upper_weight` and `lower_weight` with
              `period` steps.

            `start_step` is 0 by default.

    Example:
        out: noise_level
        scheduler: {type: linear_decay, initial_weight: 0.1, start_step: 0, steps: 1000, lower_bound: 0}
    """

    def __init__(self, *, out: StateOut, scheduler: dict[str, Any]) -> None:
        self.out = out
        options = dict(scheduler)
        name = options.pop("type", None)
        if name not in _SCHEDULERS:
            raise ConfigurationError(f"scheduled_scalar: scheduler type '{name}' is none of {', '.join(_SCHEDULERS)}")
        self.scheduler = _SCHEDULERS[name]
        known = dict(list(inspect.signature(self.scheduler).parameters.items())[1:])
        for key in options:
            if key not in known:
                hint = f"did you mean '{nearest(key, known)}'?" if nearest(key, known) else f"it takes: {', '.join(known)}"
                raise ConfigurationError(f"scheduled_scalar: scheduler '{name}' has no option '{key}'; {hint}")
        missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in options]
        if missing:
            raise ConfigurationError(f"scheduled_scalar: scheduler '{name}' needs {', '.join(missing)}")
        for key in ("steps", "period"):
            if options.get(key, 1) <= 0:
                raise ConfigurationError(f"scheduled_scalar: scheduler '{name}' needs {key} above 0, given: {options[key]}")
        self.options = options

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: self.scheduler(context.step, **self.options)}


def _fixed(step: int, *, weight: float) -> float:
    return weight


def _linear_decay(step: int, *, initial_weight: float, lower_bound: float, steps: int, start_step: int = 0) -> float:
    elapsed = min(max(step - start_step, 0), steps)
    return initial_weight - (initial_weight - lower_bound) * elapsed / steps


def _sinusoidal(step: int, *, upper_weight: float, lower_weight: float, period: int, start_step: int = 0) -> float:
    elapsed = max(step - start_step, 0)
    middle, amplitude = (upper_weight + lower_weight) / 2, (upper_weight - lower_weight) / 2
    return middle + amplitude * math.cos(2 * math.pi * elapsed / period)


_SCHEDULERS: dict[str, Callable[..., float]] = {
    "fixed": _fixed,
    "linear_decay": _linear_decay,
    "sinusoidal": _sinusoidal,
}
