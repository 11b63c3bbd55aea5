"""What networks make, told by its shape: pictures, sound, or maps (spectrograms, alignments). How it is measured and shown."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dlas.config.schema import EvalConfig
from dlas.data.images.files import write_png
from dlas.layers.mel import HIGHEST, LOWEST, MelSpectrogram
from dlas.metrics import quantize_8bit
from dlas.observe.sounds import write_wav


def is_sound(results: Tensor) -> bool:
    """Whether these are waveforms, (B, N) or (B, 1, N)."""
    return results.dim() == 2 or (results.dim() == 3 and results.shape[1] == 1)


def measured(results: Tensor) -> Tensor:
    """What metrics are given: pictures rounded to 8 bits, anything else as it is."""
    return quantize_8bit(results) if results.dim() == 4 else results


def as_pictures(results: Tensor, reverse_n1_to_1: bool = False) -> Tensor | None:
    """Pictures of a batch, (B, C, H, W) in [0, 1].

    Args:
        results: pictures (B, C, H, W); sound, drawn as a spectrogram; or maps (B, H, W), drawn with the first row at the
            bottom: log-mel spectrograms where a number is negative, else what is in [0, 1] already, such as alignments.
        reverse_n1_to_1: map pictures and maps from [-1, 1] first.

    Returns:
        None of what cannot be drawn: another shape, or sound too short for a spectrogram.
    """
    if results.dim() not in (2, 3, 4):
        return None
    sound = is_sound(results)
    if reverse_n1_to_1 and not sound:
        results = (results + 1) / 2
    if results.dim() == 4:
        return results
    maps = results.detach().float()
    if sound:
        spectrogram = MelSpectrogram(mel_fmax=11025).to(maps.device)  # any rate will do to look at
        if maps.shape[-1] <= spectrogram.filter_length // 2:
            return None
        maps = spectrogram(maps.flatten(1).clamp(-1, 1))
    maps = torch.where(maps.amin() < 0, (maps - LOWEST) / (HIGHEST - LOWEST), maps)
    return maps.clamp(0, 1).flip(1)[:, None]


def write_result(stem: Path, results: Tensor, section: EvalConfig) -> None:
    """Writes the first of a batch: <stem>.png, and of sound whose rate `eval.sampling_rate` tells <stem>.wav."""
    pictures = as_pictures(results)
    if pictures is not None:
        write_png(stem.with_name(f"{stem.name}.png"), pictures[0])
    if is_sound(results) and section.sampling_rate is not None:
        write_wav(stem.with_name(f"{stem.name}.wav"), results[0].flatten(), section.sampling_rate)
