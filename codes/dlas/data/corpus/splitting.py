"""Where speech begins and ends."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dlas.data.corpus.plan import SpeechPlan

FRAME = 0.01
"""Seconds over which loudness is measured."""

QUIETEST = -120.0
"""What is said of digital silence, in decibels."""


class Part(NamedTuple):
    """Samples of a recording, from the first to the one behind the last."""

    start: int
    end: int


def frame_levels(sound: Tensor, rate: int) -> Tensor:
    """Loudness of each `FRAME`, (N,) -> (frames,) in decibels under full scale; the last frame may be shorter."""
    size = frame_size(rate)
    rest = len(sound) % size
    whole = sound[: len(sound) - rest].unflatten(0, (-1, size)).square().mean(1)
    power = torch.cat([whole, sound[len(sound) - rest :].square().mean()[None]]) if rest else whole
    return (10 * power.log10()).clamp(min=QUIETEST)


def frame_size(rate: int) -> int:
    """Samples of a frame."""
    return max(1, round(rate * FRAME))


def speech_parts(sound: Tensor, rate: int, plan: SpeechPlan) -> list[Part]:
    """The parts of a recording between its silences.

    A silence is `plan.min_silence` seconds or more of frames below `plan.silence_below`. At both ends of a part
    `plan.keep_silence` seconds of what is silent there stay, if there are as many.

    Args:
        sound: (N,).
        rate: in Hz.
        plan: what is silent.
    """
    size = frame_size(rate)
    loud = (frame_levels(sound, rate) >= plan.silence_below).nonzero().flatten()
    if not len(loud):
        return []
    apart = (loud.diff() - 1) * size >= plan.min_silence * rate
    first = torch.cat([loud[:1], loud[1:][apart]]) * size
    last = (torch.cat([loud[:-1][apart], loud[-1:]]) + 1) * size
    keep = round(plan.keep_silence * rate)
    spans = zip((first - keep).tolist(), (last + keep).tolist(), strict=True)
    return [Part(max(0, start), min(len(sound), end)) for start, end in spans]
