"""Comparing speeds that were measured in turn on a machine that does other things, too."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

_COVERAGE = 0.9
_BY_FAR = 1.25  # a ratio that needs no probability


@dataclass(frozen=True)
class Ratio:
    """How much faster one setting is than another, by the rounds in which both were measured.

    Args:
        median: of the ratios of the rounds.
        low: of an interval that holds the true median with the probability `coverage`, whatever the noise is like.
        high: its other end.
        rounds: how many there are.
    """

    median: float
    low: float
    high: float
    rounds: int

    @property
    def coverage(self) -> float:
        """Probability with which [low, high] holds the true median; 0 for a single round."""
        return 1 - 2 * _tail(self.rounds, _place(self.rounds))

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 1 with 90 % (which takes 5 rounds), or all of two rounds and more do so by far."""
        if self.coverage >= _COVERAGE:
            return not self.low <= 1 <= self.high
        return self.rounds > 1 and (self.low >= _BY_FAR or self.high <= 1 / _BY_FAR)


def paired(speeds: Mapping[int, float], others: Mapping[int, float]) -> Ratio | None:
    """The ratio of two settings' speeds, each by round; None where no round has both.

    What slows a whole round down hits both, and falls out. The interval is that of the sign test: from the k-th smallest to
    the k-th largest ratio, with the largest k that covers 90 %, or from the smallest to the largest where no k does.
    """
    ratios = sorted(speeds[each] / others[each] for each in speeds.keys() & others.keys())
    if not ratios:
        return None
    place = _place(len(ratios))
    return Ratio(statistics.median(ratios), ratios[place - 1], ratios[-place], len(ratios))


def _place(rounds: int) -> int:
    place = 1
    while place + 1 <= (rounds + 1) // 2 and 1 - 2 * _tail(rounds, place + 1) >= _COVERAGE:
        place += 1
    return place


def _tail(rounds: int, place: int) -> float:
    """Probability that fewer than `place` of the rounds lie on one side of the true median."""
    return sum(math.comb(rounds, k) for k in range(place)) / 2**rounds
