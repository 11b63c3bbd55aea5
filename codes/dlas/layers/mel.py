"""Log-mel spectrograms, on any device, in batches: the two kinds that TorToiSe reads, and what they are made of."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dlas.host import sent

MelScale: TypeAlias = Literal["htk", "slaney"]
"""htk: 2595 log10(1 + f / 700). slaney: linear up to 1 kHz, logarithmic above, as in the Auditory Toolbox."""

LOG_FLOOR = 1e-5
"""Least magnitude or power before the logarithm."""

LOWEST = math.log(LOG_FLOOR)
"""Of a log-mel spectrogram: silence."""

HIGHEST = 2.3143386840820312
"""Of the magnitude kind, by which it is brought to [-1, 1]."""

HIGHEST_POWER = 4.82
"""Of the power kind."""

_LINEAR = 200 / 3  # Hz a mel, up to
_BREAK = 1000.0  # Hz, from where on a mel multiplies by
_FACTOR = 6.4 ** (1 / 27)


def to_mel(frequency: Tensor, scale: MelScale) -> Tensor:
    """Hz to mel."""
    if scale == "htk":
        return 2595 * torch.log10(1 + frequency / 700)
    above = _BREAK / _LINEAR + torch.log(frequency.clamp(min=_BREAK) / _BREAK) / math.log(_FACTOR)
    return torch.where(frequency < _BREAK, frequency / _LINEAR, above)


def to_hertz(mel: Tensor, scale: MelScale) -> Tensor:
    """Mel to Hz."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    knee = _BREAK / _LINEAR
    return torch.where(mel < knee, mel * _LINEAR, _BREAK * _FACTOR ** (mel.clamp(min=knee) - knee))


def mel_filters(sampling_rate: int, n_fft: int, bins: int, fmin: float, fmax: float, scale: MelScale) -> Tensor:
    """Triangles over frequency, each of the same area.

    Args:
        sampling_rate: in Hz.
        n_fft: length of the Fourier transform.
        bins: how many triangles.
        fmin: where the first begins, in Hz.
        fmax: where the last ends.
        scale: in which they are evenly spaced.

    Returns:
        (bins, n_fft // 2 + 1), float32.

    Raises:
        ValueError: `fmax` is beyond half the sampling rate, or not above `fmin`.

    Source: Slaney, "Auditory Toolbox", 1998.
    """
    if not 0 <= fmin < fmax <= sampling_rate / 2:
        raise ValueError(
            f"mel filters from {fmin} to {fmax} Hz: 0 <= fmin < fmax <= {sampling_rate / 2:g} is needed, half the rate"
        )
    frequency = torch.linspace(0, sampling_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    first, last = to_mel(torch.tensor([fmin, fmax], dtype=torch.float64), scale)
    # Without numbers of the tensors' contents, which a rehearsal on tensors without contents could not give.
    corners = to_hertz(first + (last - first) * torch.linspace(0, 1, bins + 2, dtype=torch.float64), scale)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = torch.minimum((frequency - low) / (middle - low), (high - frequency) / (high - middle)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


class MelSpectrogram(nn.Module):
    """Waveforms to log-mel spectrograms; frames are centred, the signal is reflected at its ends.

    Args:
        sampling_rate: of the waveforms, in Hz.
        filter_length: of the Fourier transform, in samples.
        hop_length: samples a frame.
        win_length: of the Hann window.
        n_mel_channels: bins.
        mel_fmin: lowest frequency, in Hz.
        mel_fmax: highest.
        power: 1: magnitudes are summed; 2: their squares.
        scale: of the bins.

    Source: Davis and Mermelstein, IEEE Transactions on Acoustics, Speech, and Signal Processing 28(4), 1980; constants as in
    NVIDIA's Tacotron 2 (power 1, slaney), and torchaudio's (power 2, htk).
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        *,
        sampling_rate: int = 22050,
        filter_length: int = 1024,
        hop_length: int = 256,
        win_length: int = 1024,
        n_mel_channels: int = 80,
        mel_fmin: float = 0.0,
        mel_fmax: float = 8000.0,
        power: Literal[1, 2] = 1,
        scale: MelScale = "slaney",
    ) -> None:
        super().__init__()
        self.filter_length, self.hop_length, self.win_length, self.power = filter_length, hop_length, win_length, power
        filters = mel_filters(sampling_rate, filter_length, n_mel_channels, mel_fmin, mel_fmax, scale)
        self.register_buffer("window", torch.hann_window(win_length), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Spectrograms in float32.

        Args:
            audio: (B, N) or (B, 1, N), within [-1, 1]; N is over half of `filter_length`.

        Returns:
            (B, n_mel_channels, 1 + N // hop_length), natural logarithms, at least `LOWEST`.

        Raises:
            ValueError: the audio is too short, or has several channels.
        """
        if audio.ndim == 3:
            if audio.shape[1] != 1:
                raise ValueError(f"spectrograms are of one channel; the audio has {audio.shape[1]}: mix them, or take one")
            audio = audio[:, 0]
        if audio.shape[-1] <= self.filter_length // 2:
            raise ValueError(f"audio of {audio.shape[-1]} samples is too short: over {self.filter_length // 2} are needed")
        with torch.autocast(audio.device.type, enabled=False):
            waves = torch.stft(
                audio.float(), self.filter_length, self.hop_length, self.win_length, self.window, return_complex=True
            )
            summed = self.filters @ (waves.abs() if self.power == 1 else waves.real.square() + waves.imag.square())
            return summed.clamp(min=LOG_FLOOR).log()


def normalise_mel(mel: Tensor, highest: float = HIGHEST) -> Tensor:
    """Log-mel spectrograms from [`LOWEST`, highest] to [-1, 1]."""
    return 2 * (mel - LOWEST) / (highest - LOWEST) - 1


def denormalise_mel(normalised: Tensor, highest: float = HIGHEST) -> Tensor:
    """The reverse of `normalise_mel`."""
    return (normalised + 1) / 2 * (highest - LOWEST) + LOWEST


def resample(audio: Tensor, rate: int, new_rate: int, *, zeros: int = 6, rolloff: float = 0.99) -> Tensor:
    """Changes the sampling rate by band-limited interpolation with a Hann-windowed sinc.

    Args:
        audio: (..., N).
        rate: its rate in Hz.
        new_rate: that of the result.
        zeros: crossings of the sinc on each side of its middle.
        rolloff: where the low-pass ends, in shares of half the lower rate.

    Returns:
        (..., ceil(N new_rate / rate)), in the type of the input.

    Source: Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample; constants of torchaudio.
    """
    if rate == new_rate:
        return audio
    common = math.gcd(rate, new_rate)
    old, new = rate // common, new_rate // common
    kernels, reach = _resampling_kernels(old, new, zeros, rolloff)
    flat = F.pad(audio.reshape(-1, 1, audio.shape[-1]), (reach, reach + old))
    blocks = F.conv1d(flat, sent(torch.from_numpy(kernels)[:, None], flat.device, flat.dtype), stride=old)
    length = math.ceil(new * audio.shape[-1] / old)
    return blocks.transpose(1, 2).flatten(1)[:, :length].reshape(*audio.shape[:-1], length)


@lru_cache(maxsize=16)
def _resampling_kernels(old: int, new: int, zeros: int, rolloff: float) -> tuple[NDArray[np.float64], int]:
    """What makes `new` samples of a block of `old` ones, (new, old + 2 reach), and how far it reaches beyond the block.

    They are kept, since making them takes longer than using them on a few seconds of sound; as arrays, which a rehearsal on
    tensors without contents leaves as they are.
    """
    cutoff = min(old, new) * rolloff
    reach = math.ceil(zeros * old / cutoff)
    # The time from each of a block's new samples to each old sample around it, in crossings of the sinc.
    source = np.arange(-reach, reach + old) / old
    distance = ((source - np.arange(new)[:, None] / new) * cutoff).clip(-zeros, zeros)
    window = np.cos(distance * math.pi / zeros / 2) ** 2
    return np.sinc(distance) * window * (cutoff / old), reach
