"""Loudness, and silence at the ends."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRAME = 0.02
"""Seconds over which loudness is measured, to find silence."""


def loudness(sound: Tensor) -> float:
    """Root mean square of (N,), in decibels below full scale; -inf for silence or nothing."""
    power = float(sound.double().square().mean()) if sound.numel() else 0.0
    return 10 * math.log10(power) if power else -math.inf


def to_loudness(sound: Tensor, decibels: float, peak: float = 0.99) -> Tensor:
    """Makes sound so loud, or as loud as its peak allows. Silence stays.

    Args:
        sound: (N,).
        decibels: wanted root mean square, below full scale: for speech some -23.
        peak: largest sample of the result.
    """
    if not math.isfinite(own := loudness(sound)):
        return sound
    return sound * min(10 ** ((decibels - own) / 20), peak / float(sound.abs().max()))


def trim_silence(sound: Tensor, rate: int, below: float = -50.0, margin: float = 0.1) -> Tensor:
    """Cuts silence off both ends.

    Args:
        sound: (N,).
        rate: in Hz.
        below: frames of 20 ms that are less loud than this, in decibels below full scale, are silence.
        margin: seconds of it that stay.

    Returns:
        A part of `sound`; nothing, (0,), where all of it is silence.
    """
    size = max(1, round(rate * FRAME))
    frames = torch.nn.functional.pad(sound, (0, -len(sound) % size)).unflatten(0, (-1, size))
    loud = (frames.square().mean(1) > 10 ** (below / 10)).nonzero().flatten()
    if not len(loud):
        return sound[:0]
    keep = round(rate * margin)
    return sound[max(0, int(loud[0]) * size - keep) : (int(loud[-1]) + 1) * size + keep]
