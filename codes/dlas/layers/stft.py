"""Magnitudes of short-time spectra at several resolutions, and how far two waveforms are apart in them.

Yamamoto et al., "Parallel WaveGAN", ICASSP 2020 (arXiv:1910.11480), section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POWER_FLOOR = 1e-7
"""Least squared magnitude: below it there is no gradient, and the logarithm is that of silence."""


def check_resolutions(resolutions: Sequence[Sequence[int]]) -> None:
    """Raises a ValueError unless each is [length of the transform, hop, length of the window], the window fitting in."""
    for each in resolutions:
        if len(each) != 3 or not 0 < each[1] <= each[2] <= each[0]:
            raise ValueError(
                f"a resolution is [n_fft, hop, window] in samples with hop <= window <= n_fft, such as [1024, 120, 600]; "
                f"found {list(each)}"
            )
    if not resolutions:
        raise ValueError("resolutions: at least one [n_fft, hop, window] is needed")


def stft_magnitude(audio: Tensor, resolution: Sequence[int]) -> Tensor:
    """Magnitudes with a Hann window, in float32; frames are centred, the signal is reflected at its ends.

    Args:
        audio: (B, N) or (B, 1, N), over n_fft / 2 samples.
        resolution: n_fft, hop and window, in samples.

    Returns:
        (B, n_fft // 2 + 1, 1 + N // hop), at least sqrt(`POWER_FLOOR`).

    Raises:
        ValueError: the audio is too short or has several channels.
    """
    n_fft, hop, length = resolution
    if audio.ndim == 3:
        if audio.shape[1] != 1:
            raise ValueError(f"spectra are of one channel, the audio has {audio.shape[1]}: {tuple(audio.shape)}")
        audio = audio[:, 0]
    if audio.shape[-1] <= n_fft // 2:
        raise ValueError(
            f"audio of {audio.shape[-1]} samples is too short for spectra of {n_fft}: over {n_fft // 2} are needed"
        )
    with torch.autocast(audio.device.type, enabled=False):
        window = torch.hann_window(length, device=audio.device)
        waves = torch.stft(audio.float(), n_fft, hop, length, window, return_complex=True)
        return (waves.real.square() + waves.imag.square()).clamp(min=POWER_FLOOR).sqrt()


def stft_distances(prediction: Tensor, target: Tensor, resolutions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """How far spectra are apart, for each sample, the mean over resolutions.

    Args:
        prediction: (B, N) or (B, 1, N).
        target: of the same shape.
        resolutions: each n_fft, hop and window.

    Returns:
        Spectral convergence |S - S'| / |S| with Frobenius norms (S: the target's magnitudes), (B,), and the mean
        |log S - log S'|, (B,); float32.
    """
    convergences, logarithms = [], []
    for resolution in resolutions:
        made, true = stft_magnitude(prediction, resolution), stft_magnitude(target, resolution)
        convergences.append(_norm(true - made) / _norm(true))
        logarithms.append((true.log() - made.log()).abs().mean((1, 2)))
    return torch.stack(convergences).mean(0), torch.stack(logarithms).mean(0)


def _norm(spectra: Tensor) -> Tensor:
    return torch.linalg.vector_norm(spectra, dim=(1, 2))
