"""Which clips sound like the same voice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dlas.data.corpus.functions import Clips
from dlas.layers.mel import MelSpectrogram

_BINS, _COEFFICIENTS = 40, 20
_LOUD = 30.0  # decibels under the loudest frame, below which frames say nothing of a voice
_CHUNK = 1024  # rows of the matrix of similarities at once


def cepstral_statistics(clips: Clips, rate: int) -> list[list[float]]:
    """Mean and standard deviation over time of each clip's mel-frequency cepstral coefficients 1 to 19, and of their changes.

    The zeroth is loudness and left out. Vectors are to be standardised over a corpus before they are compared.

    Args:
        clips: of over 50 ms.
        rate: in Hz.

    Source: Davis and Mermelstein, IEEE Transactions on Acoustics, Speech, and Signal Processing 28(4), 1980.
    """
    size = 2 ** round(math.log2(rate * 0.046))
    mel = MelSpectrogram(
        sampling_rate=rate,
        filter_length=size,
        win_length=size,
        hop_length=size // 4,
        n_mel_channels=_BINS,
        mel_fmax=min(8000.0, rate / 2),
        power=2,
        scale="htk",
    )
    place = (torch.arange(_BINS) + 0.5) * math.pi / _BINS
    cosines = torch.cos(torch.arange(1, _COEFFICIENTS)[:, None] * place) * math.sqrt(2 / _BINS)
    found = []
    for clip in clips:
        spectrum = mel(torch.as_tensor(clip)[None])[0]
        level = spectrum.logsumexp(0)
        loud = level > level.max() - _LOUD / 10 * math.log(10)
        coefficients = cosines @ spectrum
        changes = coefficients.diff(dim=1)[:, loud[1:] & loud[:-1]]
        coefficients = coefficients[:, loud]
        parts = [coefficients.mean(1), coefficients.std(1, correction=0)]
        parts.append(changes.std(1, correction=0) if changes.shape[1] else torch.zeros(_COEFFICIENTS - 1))
        found.append(torch.cat(parts).tolist())
    return found


def standardised(vectors: Tensor) -> Tensor:
    """(N, D) with mean 0 and standard deviation 1 over N; what does not vary is 0."""
    centred = vectors - vectors.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp(min=1e-6)


def most_similar(vectors: Tensor, count: int) -> list[list[int]]:
    """For each vector the numbers of the others with the largest cosine, the most similar first.

    Args:
        vectors: (N, D).
        count: how many; fewer where there are not as many others.
    """
    units = torch.nn.functional.normalize(vectors.double(), dim=1)
    count = min(count, len(units) - 1)
    found: list[list[int]] = []
    for start in range(0, len(units), _CHUNK):
        cosines = units[start : start + _CHUNK] @ units.mT
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = -math.inf
        found += cosines.argsort(dim=1, descending=True, stable=True)[:, :count].tolist()
    return found


def similar_clips(speakers: Sequence[str], vectors: Tensor, count: int) -> list[list[int]]:
    """`most_similar` among the clips of the same speaker.

    Args:
        speakers: of each clip.
        vectors: (N, D).
        count: how many for each.
    """
    found: list[list[int]] = [[] for _ in speakers]
    members: dict[str, list[int]] = {}
    for number, speaker in enumerate(speakers):
        members.setdefault(speaker, []).append(number)
    for own in members.values():
        for number, others in zip(own, most_similar(vectors[own], count), strict=True):
            found[number] = [own[other] for other in others]
    return found
