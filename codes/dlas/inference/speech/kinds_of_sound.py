"""A trained classifier of sound, as a function."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dlas.archs.speech.audio_classifier import AudioClassifier
from dlas.errors import CheckpointError
from dlas.inference.model import find


@dataclass(frozen=True)
class KindsOfSound:
    """The network of a training run, or of a file, that reads waveforms. Each process loads it for itself.

    Args:
        path: the run's folder, or the file.
        checksum: of its weights, as `of` found them.
    """

    path: str
    checksum: int

    @classmethod
    def of(cls, path: str) -> KindsOfSound:
        """The network at a path.

        Raises:
            CheckpointError: there is none, or it classifies no waveforms.
        """
        sums = 0
        for name, value in sorted(_load(path).state_dict().items()):
            sums = zlib.crc32(value.cpu().contiguous().numpy().tobytes(), zlib.crc32(name.encode(), sums))
        return cls(path, sums)

    def __call__(self, sound: Tensor, rate: int) -> list[float]:
        """The probability of each kind.

        Args:
            sound: (N,).
            rate: in Hz; the network takes it for the one that it was trained with.
        """
        del rate
        with torch.no_grad():
            shares: list[float] = _kept(self)(sound[None, None]).softmax(1)[0].tolist()
        return shares


@lru_cache(maxsize=1)
def _kept(which: KindsOfSound) -> AudioClassifier:
    return _load(which.path)


def _load(path: str) -> AudioClassifier:
    found = find(path)
    built = found.build()
    if not isinstance(built, AudioClassifier):
        raise CheckpointError(
            f"{found.source}: is a {found.options.get('which_model')}; a mini_audio_encoder_classifier is expected"
        )
    if (channels := int(found.options.get("spec_dim", 1))) != 1:
        raise CheckpointError(f"{found.source}: reads spectrograms of {channels} bins; one that reads waveforms is expected")
    return built
