"""The pitch of voices.

de Cheveigné and Kawahara, "YIN, a fundamental frequency estimator for speech and music", JASA 111(4), 2002.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SILENCE = 1e-3
"""Root mean square of a frame, of full scale 1, below which it has no pitch."""


def yin(
    audio: Tensor, rate: int, *, hop: int = 256, lowest: float = 60.0, highest: float = 500.0, threshold: float = 0.15
) -> Tensor:
    """Fundamental frequency of each frame, by steps 1 to 5 of YIN.

    A frame is voiced where its normalised difference function falls below the threshold, and is not silent (`SILENCE`). The
    first lag where it does counts, at the minimum that follows, with a parabola through three points.

    Args:
        audio: (B, N), full scale 1.
        rate: in Hz.
        hop: samples between frames.
        lowest: pitch in Hz that is looked for; the frames are two of its periods.
        highest: pitch in Hz.
        threshold: share of the difference's mean; lower: fewer frames are voiced.

    Returns:
        Hz, (B, 1 + N // hop), float64; 0 where a frame is unvoiced. Frames are centred, beyond the ends is silence.

    Raises:
        ValueError: the range of pitches is empty, or beyond a quarter of the rate.
    """
    if not 0 < lowest < highest <= rate / 4:
        raise ValueError(f"pitch from {lowest} to {highest} Hz: 0 < lowest < highest <= {rate / 4:g} is needed")
    longest, shortest = int(rate / lowest) + 1, int(rate / highest)
    window = longest
    frames = F.pad(audio.double(), (longest, longest)).unfold(-1, window + longest, hop)  # (B, T, window + longest)
    size = 2 * (window + longest)
    first = torch.fft.rfft(frames[..., :window], size)
    products = torch.fft.irfft(first.conj() * torch.fft.rfft(frames, size), size)[..., : longest + 1]
    energies = F.pad(frames.square().cumsum(-1), (1, 0))
    energy = energies[..., window:] - energies[..., :-window]  # of the window that begins at each lag
    difference = (energy[..., :1] + energy - 2 * products).clamp(min=0)[..., 1:]  # for lags from 1 on
    lags = torch.arange(1, longest + 1, dtype=torch.float64, device=audio.device)
    normed = difference * lags / difference.cumsum(-1).clamp(min=1e-12)

    before, middle, after = normed[..., :-2], normed[..., 1:-1], normed[..., 2:]  # middle: lags from 2 on
    least = (middle <= after) & (middle <= before) & (middle < threshold)
    least[..., : max(shortest - 2, 0)] = False
    silent = frames.square().mean(-1) < SILENCE**2
    voiced = least.any(-1) & ~silent
    place = least.int().argmax(-1, keepdim=True)
    left, low, right = (each.gather(-1, place)[..., 0] for each in (before, middle, after))
    shift = (left - right) / (2 * (left - 2 * low + right)).clamp(min=1e-12)
    return torch.where(voiced, rate / (place[..., 0] + 2 + shift.clamp(-1, 1)), 0.0)
