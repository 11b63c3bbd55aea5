"""Sound made for looking at and listening to."""

from __future__ import annotations

import io
import math
import wave

import cv2
import torch
from torch import Tensor

_RANGE = 80.0  # decibels from black to the brightest colour
_LOWEST = 1e-10  # power of silence


def spectrogram_picture(sound: Tensor, rate: int, height: int = 256) -> Tensor:
    """Power over time, to the right, and frequency, upwards, in colours over a range of 80 dB below the strongest.

    Args:
        sound: (N,), N at least 2.
        rate: in Hz; windows are about 46 ms, a quarter apart.
        height: most pixels; frequencies are averaged to it.

    Returns:
        (3, up to `height`, frames) in [0, 1].
    """
    sound = sound.detach().float().cpu()
    size = min(2 ** max(2, round(math.log2(rate * 0.046))), len(sound))
    waves = torch.stft(sound, size, max(1, size // 4), window=torch.hann_window(size), pad_mode="constant", return_complex=True)
    power = waves.abs().square()[1:]
    group = -(-len(power) // height)
    power = power[: len(power) // group * group].unflatten(0, (-1, group)).mean(1).flip(0)
    levels = 10 * power.clamp(min=_LOWEST).log10()
    shown = ((levels - levels.max()) / _RANGE + 1).clamp(0, 1)
    colours = cv2.applyColorMap((shown * 255).round().to(torch.uint8).numpy(), cv2.COLORMAP_INFERNO)
    return torch.from_numpy(colours[:, :, ::-1].copy()).movedim(2, 0).float() / 255


def wave_file(sound: Tensor, rate: int) -> bytes:
    """A WAV file of 16 bits of sound (N,); what is beyond [-1, 1] is cut off."""
    samples = (sound.detach().float().cpu().clamp(-1, 1) * 32767).round().to(torch.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes(samples.numpy().astype("<i2").tobytes())
    return file.getvalue()
