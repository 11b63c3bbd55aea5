"""Spectrograms that are files already."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dlas.data.audio.batches import pad_to
from dlas.data.base import BadSample, Dataset, Request, Sample
from dlas.errors import DataError, printable
from dlas.registry import DATASETS
from dlas.types import PositiveInt

_UNNAMED = "arr_0"
"""What NumPy calls an array that was saved without a name."""


@DATASETS.register("preprocessed_mel")
class PreprocessedMel(Dataset):
    """Spectrograms from .npz files of one array (bins, frames) each, all brought to one length.

    Gives `mel` (B, bins, N), `mel_lengths` (frames without what is filled up), `mask` (B, N: 1 where it is filled up),
    `mask_lengths` (N) and `path`. DL-Art-School gave N as `mel_lengths`, too.

    Args:
        phase: in the train phase the part of a longer spectrogram is drawn, as a function of the seed and the sample's place in
            the order; in others it is the beginning.
        path: folder; subfolders are searched.
        pad_to_samples: N, in frames.
        should_squeeze: arrays have a first axis of size 1 more.
        on_bad_file: `error` stops at a damaged file; `skip` takes another one and reports it.

    Raises:
        DataError: the folder is missing, or has no .npz files.
    """

    provides = ("mel", "mel_lengths", "mask", "mask_lengths", "path")

    def __init__(
        self,
        phase: str,
        /,
        *,
        path: str,
        pad_to_samples: PositiveInt = 10336,
        should_squeeze: bool = False,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise DataError(f"no folder at {printable(folder)}")
        self.files = sorted(folder.rglob("*.npz"))
        if not self.files:
            raise DataError(f"{printable(folder)} holds no .npz files; expected one for each spectrogram")
        self.length, self.squeezes = pad_to_samples, should_squeeze
        self.random = phase == "train"
        self.on_bad_file = on_bad_file

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: there are no images."""

    def __len__(self) -> int:
        return len(self.files)

    def source(self, index: int) -> str:
        return str(self.files[index])

    def __getitem__(self, request: Request) -> Sample:
        path = self.files[request.index]
        mel = self._read(path)
        place = request.rng("crop").random() if self.random else 0.0
        start = int(place * max(mel.shape[1] - self.length + 1, 1))
        mel = mel[:, start : start + self.length]
        frames = mel.shape[1]
        return {
            "mel": pad_to(mel, [mel.shape[0], self.length]),
            "mel_lengths": frames,
            "mask": (torch.arange(self.length) >= frames).float(),
            "mask_lengths": self.length,
            "path": str(path),
        }

    def _read(self, path: Path) -> Tensor:
        try:
            with np.load(path, allow_pickle=False) as file:
                name = _UNNAMED if _UNNAMED in file.files or len(file.files) != 1 else file.files[0]
                found: np.ndarray[Any, Any] = file[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BadSample(path, f"cannot be read ({error}); expected a file of numpy.savez with one array") from error
        if self.squeezes and found.ndim == 3 and found.shape[0] == 1:
            found = found[0]
        if found.ndim != 2 or 0 in found.shape:
            hint = "; write should_squeeze: true" if found.ndim == 3 and found.shape[0] == 1 else ""
            raise BadSample(path, f"has an array of shape {found.shape}; expected (bins, frames){hint}")
        mel = torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))
        if not bool(mel.isfinite().all()):
            raise BadSample(path, "has numbers that are not finite; make it again or remove it")
        return mel
