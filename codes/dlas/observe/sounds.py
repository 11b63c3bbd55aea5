"""Sound made for looking at and listening to."""

from __future__ import annotations

import io
import math
import wave
from pathlib import Path

import cv2
import torch
from torch import Tensor

from dlas.observe import disk

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


def pcm16(sound: Tensor) -> bytes:
    """Samples (N,) as whole numbers of 16 bits, little end first; cut off beyond [-1, 1], NaN is silence."""
    samples = (sound.detach().float().cpu().nan_to_num(0).clamp(-1, 1) * 32767).round().short()
    return samples.numpy().astype("<i2").tobytes()


def wave_file(sound: Tensor, rate: int) -> bytes:
    """A WAV file of one channel and 16 bits, of sound (N,), as of `pcm16`, and its rate in Hz."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm16(sound))
    return content.getvalue()


def write_wav(path: Path, sound: Tensor, rate: int) -> None:
    """Writes `wave_file`; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace_text(path, wave_file(sound, rate))
