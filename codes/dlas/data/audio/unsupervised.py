"""Sound without texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dlas.data.audio.batches import pad_to, pad_to_longest
from dlas.data.audio.companions import Companions, in_folder
from dlas.data.audio.files import as_paths, list_sounds, read_part, read_sound
from dlas.data.audio.levels import to_loudness, trim_silence
from dlas.data.base import BadSample, Dataset, Request, Sample, TensorSpec
from dlas.errors import ConfigurationError, DataError
from dlas.registry import DATASETS
from dlas.types import NonNegativeInt, PositiveFloat, PositiveInt


@DATASETS.register("unsupervised_audio")
class UnsupervisedAudio(Dataset):
    """Parts of sound files, all of one length.

    Gives `clip` (B, 1, N), `clip_lengths` (N), `prepad_length` (samples without what is filled up) and `path`; with
    `extra_samples` also `alt_clips`, parts of other files in the same folder, (B, 1, L) or of several (B, n, 1, L), and
    `alt_contains_self`.

    Args:
        phase: in the train phase the part of a longer file is drawn, as a function of the seed and the sample's place in the
            order; in others it is the beginning.
        path: folder, or several; subfolders are searched.
        sampling_rate: in Hz.
        pad_to_samples: N. Without it and `pad_to_seconds` files are whole, and a batch is filled up to its longest.
        pad_to_seconds: the same in seconds.
        dont_clip: longer files are bad files in place of being cut.
        min_length: samples of the shortest file that is used.
        exclusions: names of files, one a line, that are left out; lists of them.
        endswith: only files whose paths end so are taken; any, by default.
        not_endswith: files whose paths end so are left out.
        extra_samples: how many parts of other files.
        extra_sample_length: samples of each.
        only_clip: the only file of a folder, with `extra_samples`: a bad file, or with `self` its own other.
        trim_below: silence at both ends, below so many decibels under full scale, is cut off; needs whole files.
        loudness: root mean square to which clips are brought, in decibels: -23, say.
        on_bad_file: `error` stops at a damaged or too short file; `skip` takes another one and reports it.

    Raises:
        ConfigurationError: options do not go together.
        DataError: a folder is missing, or no file is left.
    """

    provides = ("clip", "clip_lengths", "prepad_length", "path", "alt_clips", "alt_contains_self")

    def __init__(
        self,
        phase: str,
        /,
        *,
        path: str | list[str],
        sampling_rate: PositiveInt = 22050,
        pad_to_samples: PositiveInt | None = None,
        pad_to_seconds: PositiveFloat | None = None,
        dont_clip: bool = False,
        min_length: NonNegativeInt = 0,
        exclusions: list[str] | None = None,
        endswith: list[str] | None = None,
        not_endswith: list[str] | None = None,
        extra_samples: NonNegativeInt = 0,
        extra_sample_length: PositiveInt = 44000,
        only_clip: Literal["error", "self"] = "error",
        trim_below: float | None = None,
        loudness: float | None = None,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        self.rate, self.shortest = sampling_rate, min_length
        self.length = _length(sampling_rate, pad_to_samples, pad_to_seconds)
        self.cuts = not dont_clip
        self.trim, self.loudness = trim_below, loudness
        self.companions = Companions(extra_samples, extra_sample_length, sampling_rate, only_clip) if extra_samples else None
        self.random = phase == "train"
        self.on_bad_file = on_bad_file
        without = {line.strip() for each in exclusions or [] for line in _lines(Path(each).expanduser())}
        found = [file for folder in as_paths(path) for file in list_sounds(folder)]
        self.files = [
            file
            for file in found
            if file.name not in without
            and str(file) not in without
            and (not endswith or str(file).endswith(tuple(endswith)))
            and not str(file).endswith(tuple(not_endswith or ()))
        ]
        if not self.files:
            raise DataError(f"exclusions, endswith and not_endswith leave none of {len(found)} files; correct them")

    collate = staticmethod(pad_to_longest)

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample | None:
        length = _length(options["sampling_rate"], options["pad_to_samples"], options["pad_to_seconds"])
        if length is None:
            return None
        sample: Sample = {"clip": TensorSpec((1, length)), "clip_lengths": length, "prepad_length": length, "path": "clip.wav"}
        if count := options["extra_samples"]:
            shape = Companions(count, options["extra_sample_length"], 1, "error").shape
            sample |= {"alt_clips": TensorSpec(shape), "alt_contains_self": False}
        return sample

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: there are no images."""

    def __len__(self) -> int:
        return len(self.files)

    def source(self, index: int) -> str:
        return str(self.files[index])

    def __getitem__(self, request: Request) -> Sample:
        path = self.files[request.index]
        place = request.rng("crop").random() if self.random else 0.0
        sound = self._read(path, place)
        if len(sound) < max(self.shortest, 1):
            raise BadSample(path, f"has {len(sound)} samples at {self.rate} Hz, and min_length is {self.shortest}; remove it")
        if self.loudness is not None:
            sound = to_loudness(sound, self.loudness)
        length = self.length or len(sound)
        sample: Sample = {
            "clip": pad_to(sound[None], [1, length]),
            "clip_lengths": length,
            "prepad_length": len(sound),
            "path": str(path),
        }
        if self.companions is not None:
            parts, own = self.companions.beside(path, in_folder(path.parent), request.rng("others"))
            sample |= {"alt_clips": parts, "alt_contains_self": own}
        return sample

    def _read(self, path: Path, place: float) -> Tensor:
        if self.length is not None and self.cuts and self.trim is None:
            return read_part(path, self.rate, self.length, place)
        sound = read_sound(path, self.rate)
        if self.trim is not None:
            sound = trim_silence(sound, self.rate, self.trim)
        if self.length is None or len(sound) <= self.length:
            return sound
        if not self.cuts:
            raise BadSample(path, f"has {len(sound)} samples at {self.rate} Hz, more than {self.length}; split it")
        start = int(place * (len(sound) - self.length + 1))
        return sound[start : start + self.length]


def _length(rate: int, samples: int | None, seconds: float | None) -> int | None:
    if samples is not None and seconds is not None:
        raise ConfigurationError("pad_to_samples and pad_to_seconds say the same; give one of them")
    return samples if seconds is None else round(seconds * rate)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; exclusions are lists of files") from error
