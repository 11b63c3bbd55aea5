"""How well a clip is recorded, and what is wrong with it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dlas.data.audio.levels import loudness
from dlas.data.corpus.plan import SpeechPlan
from dlas.data.corpus.splitting import QUIETEST, frame_levels

_WINDOW = 0.046  # seconds of a Fourier transform
_BAND = 250.0  # Hz over which a spectrum is averaged
_FLOOR = 60.0  # decibels under the strongest band where there is no sound any more
_NEAR_PEAK = 1e-3  # share of the peak within which a sample counts as cut off
_SPEECH, _PAUSES = 0.95, 0.10  # quantiles of frames


class Quality(NamedTuple):
    """Measures of a clip.

    Args:
        loudness: root mean square, in decibels under full scale.
        clipped: share of the samples within 0.1 % of the peak.
        bandwidth: frequency up to which there is sound, in Hz.
        snr: speech over what is between words, in decibels.
    """

    loudness: float
    clipped: float
    bandwidth: float
    snr: float

    def faults(self, plan: SpeechPlan) -> list[str]:
        """Why the plan does not want such a clip; nothing if it does."""
        found = {
            "too quiet": self.loudness < plan.min_loudness,
            "clipped": self.clipped > plan.max_clipped,
            "band-limited": self.bandwidth < plan.min_bandwidth,
            "noisy": self.snr < plan.min_snr,
        }
        return [fault for fault, is_so in found.items() if is_so]


def measure(sound: Tensor, rate: int) -> Quality:
    """Measures a clip.

    Args:
        sound: (N,), at the rate at which it was recorded: another one hides what was cut off.
        rate: in Hz.
    """
    return Quality(max(QUIETEST, loudness(sound)), clipped_share(sound), bandwidth(sound, rate), signal_to_noise(sound, rate))


def clipped_share(sound: Tensor) -> float:
    """Share of samples within 0.1 % of the peak, wherever the peak is: a clip that was made quieter afterwards is found, too.

    In speech it is below 1e-4.
    """
    size = sound.abs()
    return float((size >= (1 - _NEAR_PEAK) * size.max()).float().mean())


def bandwidth(sound: Tensor, rate: int) -> float:
    """Frequency in Hz below which the mean spectrum of (N,) is less than 60 dB under its strongest band.

    Three neighbouring bands of 250 Hz must be so strong: fewer are the whistle of a device.
    """
    size = min(2 ** round(math.log2(rate * _WINDOW)), len(sound))
    spectrum = torch.stft(sound, size, window=torch.hann_window(size), center=False, return_complex=True).abs().square().mean(1)
    width = max(1, round(_BAND * size / rate))
    bands = spectrum[: len(spectrum) // width * width].unflatten(0, (-1, width)).mean(1)
    strong = bands > bands.max() * 10 ** (-_FLOOR / 10)
    triples = (strong[2:] & strong[1:-1] & strong[:-2]).nonzero().flatten()
    return (int(triples[-1]) + 3) * width * rate / size if len(triples) else 0.0


def signal_to_noise(sound: Tensor, rate: int) -> float:
    """Power of the loud frames over that of the quiet ones, less the latter, in decibels.

    The quiet ones are those between words: their level is the 10 % quantile, that of speech the 95 % quantile. A clip without
    pauses is judged too low.
    """
    levels = frame_levels(sound, rate)
    speech, noise = (10 ** (float(levels.quantile(share)) / 10) for share in (_SPEECH, _PAUSES))
    return 10 * math.log10((speech - noise) / noise) if speech > noise else 0.0
