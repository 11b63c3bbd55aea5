"""How an average weighs the course of a run, and averages that are put together after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch

Profile: TypeAlias = Callable[[int], float]
"""Share of the old average that the n-th update keeps, n = 1, 2, ..."""

_MOST = math.sqrt(1 / 12)  # relative width of exponent 0, which weighs the whole run alike


def constant(rate: float) -> Profile:
    """The same share at every step.

    Args:
        rate: in [0, 1]; half of what is remembered is from the last 0.69 / (1 - rate) steps.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the EMA rate must be in [0, 1], given: {rate}")
    return lambda step: rate


def warmed_up(rate: float) -> Profile:
    """min(rate, (1 + n) / (10 + n)): the initial weights are forgotten sooner.

    Source: ``tf.train.ExponentialMovingAverage`` of TensorFlow with ``num_updates``.
    """
    bound = constant(rate)
    return lambda step: min(bound(step), (1 + step) / (10 + step))


def power(width: float) -> Profile:
    """A share that grows so that the average always spans the same part of the run, and never holds the initial weights.

    Args:
        width: standard deviation of the weights over the steps, as a share of the run, 0 < width < 0.288; EDM2: 0.01 to 0.25.

    Raises:
        ValueError: it is outside.

    Source: Karras et al. 2024 (arXiv:2312.02696), equation 5: (1 - 1 / n)^(exponent + 1).
    """
    exponent = exponent_of(width)
    return lambda step: (1 - 1 / step) ** (exponent + 1)


def from_step(profile: Profile, start: int) -> Profile:
    """Until `start` updates were made the average is the weights themselves; the profile counts from there."""
    return lambda step: profile(step - start) if step > start else 0.0


def exponent_of(width: float) -> float:
    """The exponent of a power-function average of a relative width.

    Raises:
        ValueError: the width is not between 0 and 0.288.

    Source: Karras et al. 2024 (arXiv:2312.02696), equation 123: width^2 = (g + 1) / ((g + 2)^2 (g + 3)), solved for g.
    """
    if not 0 < width < _MOST:
        raise ValueError(f"the relative width of an average must lie between 0 and {_MOST:.3f}, given: {width}")
    low, high = 0.0, 1 / width  # the width falls from `_MOST`, and is below 1 / (g + 2)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _width(middle) > width else (low, middle)
    return (low + high) / 2


def _width(exponent: float) -> float:
    return math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))


class Track(NamedTuple):
    """A power-function average at a time: `width` as of `power`, `step` counted from where the average began."""

    width: float
    step: int


def post_hoc_factors(snapshots: Sequence[Track], wanted: Track) -> list[float]:
    """Factors of snapshots by which their sum is closest to an average that was never kept; they sum to 1 nearly.

    Args:
        snapshots: what is there; best two widths, at many steps.
        wanted: the average to make; not after the last snapshot, nor outside of their widths by much.

    Source: Karras et al. 2024 (arXiv:2312.02696), section 3.1 and algorithm 3: least squares over the profiles as functions of
    continuous time.
    """
    gram = torch.tensor([[_overlap(a, b) for b in snapshots] for a in snapshots], dtype=torch.float64)
    right = torch.tensor([_overlap(a, wanted) for a in snapshots], dtype=torch.float64)
    factors: list[float] = torch.linalg.lstsq(gram, right[:, None], driver="gelsd").solution[:, 0].tolist()
    return factors


def _overlap(first: Track, second: Track) -> float:
    """Integral of the product of two profiles p(t) = (g + 1) t^g / T^(g + 1), t from 0 to T."""
    if first.step > second.step:
        first, second = second, first
    one, other = exponent_of(first.width), exponent_of(second.width)
    return (one + 1) * (other + 1) / (one + other + 1) * (first.step / second.step) ** other / second.step
