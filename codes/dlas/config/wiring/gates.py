"""When components are on, as sets of iterations that can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

_ENDLESS = 1 << 62
_MOST_TRIED = 5000


@dataclass(frozen=True)
class Window:
    """The iterations s with after <= s < before and s divisible by every."""

    after: int = 0
    before: int = _ENDLESS
    every: int = 1

    def __and__(self, other: Window) -> Window:
        return Window(max(self.after, other.after), min(self.before, other.before), math.lcm(self.every, other.every))

    @property
    def first(self) -> int | None:
        """The first iteration in it, or None if there is none."""
        step = _multiple(self.every, self.after)
        return step if step < self.before else None

    def __str__(self) -> str:
        parts = []
        if self.every > 1:
            parts.append(f"every {self.every} iterations")
        if self.after:
            parts.append(f"from iteration {self.after} on")
        if self.before < _ENDLESS:
            parts.append(f"before iteration {self.before}")
        return ", ".join(parts) or "always"


def window_of(section: Any, every: bool = True) -> Window:
    """The gates of a step, an injector or a loss; one that could not be understood counts as open."""
    before = section.before
    return Window(section.after or 0, _ENDLESS if before is None else before, (section.every or 1) if every else 1)


def first_uncovered(wanted: Window, offered: Sequence[Window]) -> int | None:
    """The first iteration of `wanted` that is in none of `offered`; None if all are covered."""
    edges = {edge for each in offered for edge in (each.after, each.before) if wanted.after < edge < wanted.before}
    borders = [wanted.after, *sorted(edges), wanted.before]
    for low, high in pairwise(borders):
        steps = [each.every for each in offered if each.after <= low and each.before >= high]
        found = _first_not_divisible(wanted.every, steps, low, high)
        if found is not None:
            return found
    return None


def _first_not_divisible(stride: int, divisors: Iterable[int], low: int, high: int) -> int | None:
    """The first multiple of `stride` in [low, high) that no divisor divides."""
    divisors = list(divisors)
    start = _multiple(stride, low)
    if start >= high or any(stride % divisor == 0 for divisor in divisors):
        return None
    period = math.lcm(stride, *divisors)
    for count, step in enumerate(range(start, min(high, start + period), stride)):
        if count > _MOST_TRIED:
            return None
        if all(step % divisor for divisor in divisors):
            return step
    return None


def _multiple(of: int, at_least: int) -> int:
    return -(-at_least // of) * of
