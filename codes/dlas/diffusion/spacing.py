"""Where a sampler asks the network: times of any process, by several rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch

from dlas.diffusion.processes import Process
from dlas.errors import ConfigurationError

Spacing: TypeAlias = Literal["own", "karras", "log_snr", "trailing", "leading", "linspace"]
"""How times are spread.

========  ======================================================================================================
name      times
========  ======================================================================================================
own       what is usual for the process: trailing (vp), karras (edm), equal steps in t, shifted (flow)
karras    equal steps in (sigma / alpha)^(1 / rho): Karras et al. 2022 (arXiv:2206.00364), equation 5
log_snr   equal steps in ln(sigma / alpha): Lu et al. 2022 (arXiv:2206.00927), section 3.4
trailing  equal steps in the process's own measure of time from its noisiest: Lin et al. 2023 (arXiv:2305.08891), table 2
leading   the same, counted from the least noise, so that the noisiest time is left out
linspace  the same, with both ends
========  ======================================================================================================
"""

_RATIO_FROM_PURE_NOISE = 80.0  # where a grid in sigma / alpha goes on after a first time without any signal; EDM's sigma_max
_LEAST_RATIO = 0.002  # where it ends if the process has no least noise; EDM's sigma_min


def spaced(process: Process, count: int, spacing: Spacing = "own", rho: float = 7.0) -> list[float]:
    """`count` times, noisiest first; the clean end is left out.

    Grids in sigma / alpha reach from the process's most noise to its least, to 0.002 where that is none. If it begins with pure
    noise, that is the first time, and the others go on from 80.

    Args:
        process: what times mean. On discrete times, those nearest, no two the same.
        count: how many.
        spacing: the rule.
        rho: of karras.

    Raises:
        ConfigurationError: the rule is unknown, or discrete times are fewer than `count`.
    """
    if process.discrete and count > process.steps:
        raise ConfigurationError(f"{count} sampling steps were asked for, but the process has {process.steps} timesteps")
    match spacing:
        case "own":
            return process.spaced(count)
        case "karras":
            return _in_ratio(process, count, lambda ratio: ratio ** (1 / rho), lambda place: place**rho)
        case "log_snr":
            return _in_ratio(process, count, math.log, math.exp)
        case "trailing":
            return _in_time(process, [1 - k / count for k in range(count)], lambda place, steps: round(place * steps) - 1)
        case "leading":
            return _in_time(
                process, [1 - (k + 1) / count for k in range(count)], lambda place, steps: round(place * steps, 6) // 1
            )
        case "linspace":
            places = [1 - k / max(1, count - 1) for k in range(count)]
            return _in_time(process, places, lambda place, steps: round(place * (steps - 1)))
    raise ConfigurationError(f"a spacing is one of own, karras, log_snr, trailing, leading, linspace; given: {spacing!r}")


def least_ratio(process: Process) -> float:
    """sigma / alpha at the process's least noise, or 0.002 if that is none."""
    level = process.level(process.time_of(torch.zeros(1, dtype=torch.float64)))
    return level.ratio.item() or _LEAST_RATIO


def _in_time(process: Process, places: list[float], timestep: Callable[[float, int], float]) -> list[float]:
    """Times at places from 0, the least noise, to 1; `timestep` turns a place into one of so many timesteps."""
    if process.discrete:
        return [timestep(place, process.steps) for place in places]
    times = process.time_of(torch.tensor(places, dtype=torch.float64)).tolist()
    if places[-1] == 0:
        times[-1] = process.at_ratio(torch.tensor([least_ratio(process)], dtype=torch.float64)).item()
    return times


def _in_ratio(process: Process, count: int, bend: Callable[[float], float], unbend: Callable[[float], float]) -> list[float]:
    """Times with equal steps in a function of sigma / alpha, whose inverse is `unbend`."""
    first = process.spaced(1)
    rest, high = (count, process.first_ratio) if math.isfinite(process.first_ratio) else (count - 1, _RATIO_FROM_PURE_NOISE)
    if rest == 0:
        return first
    start, end = bend(high), bend(least_ratio(process))
    ratios = [high, *(unbend(start + k / (rest - 1) * (end - start)) for k in range(1, rest))]
    times = process.at_ratio(torch.tensor(ratios, dtype=torch.float64)).tolist()
    times = times if rest == count else first + times
    if not process.discrete:
        return times
    # Where the grid is finer than the timesteps, several want the same one: all move on, none is lost.
    for k in reversed(range(count)):
        times[k] = max(times[k], times[k + 1] + 1 if k + 1 < count else 0)
    for k in range(count):
        times[k] = min(times[k], times[k - 1] - 1 if k else process.steps - 1)
    return times
