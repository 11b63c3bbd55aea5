"""Reading sound files."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dlas.data.base import BadSample
from dlas.data.shards import folder as shards
from dlas.errors import DataError, MissingPackageError, printable
from dlas.layers.mel import resample

if TYPE_CHECKING:
    from soundfile import SoundFile

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")

FULL_SCALE = 1 - 2**-14
"""Samples at least this large were cut off when they were recorded, or are about to be."""

CLIPPED_SHARE = 1e-3
"""From this share of such samples on a file is warned of."""

LOUDEST = 10.0
"""What no recording in [-1, 1] reaches: beyond, a file holds something else, such as whole numbers saved as floats."""

SLACK = 0.1
"""Seconds by which a header may promise more than there is, as those of compressed files do."""

_LOG = logging.getLogger(__name__)
_told: set[str] = set()


def list_sounds(folder: str | Path) -> list[Path]:
    """Sound files of a folder and its subfolders, or of shards, in the order of their names.

    Raises:
        DataError: there is no such folder, or none in it.
    """
    folder = Path(folder).expanduser()
    if shards.is_shards(folder):
        found = sorted(folder / name for name in shards.entries(folder) if Path(name).suffix.lower() in SUFFIXES)
    elif folder.is_dir():
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    else:
        raise DataError(f"no folder at {printable(folder)}")
    if not found:
        raise DataError(f"{printable(folder)} holds no sound files; expected some that end in {', '.join(SUFFIXES)}")
    return found


def read_sound(path: str | Path, rate: int) -> Tensor:
    """All of a file, mono.

    The mean over channels is taken. A rate other than `rate` is changed; that a lower one leaves the upper band empty, and that
    a file is clipped, is warned of once, with the first such file.

    Args:
        path: wav, flac, ogg, mp3, or what else libsndfile reads.
        rate: wanted, in Hz.

    Returns:
        (N,), float32, within [-1, 1].

    Raises:
        BadSample: the file is missing, empty, damaged, of another kind, or has samples that are no sound.
        MissingPackageError: soundfile is not installed.
    """
    with _opened(path) as file:
        return _decoded(path, file, file.frames, rate)


def read_part(path: str | Path, rate: int, length: int, place: float) -> Tensor:
    """A part of a file, of which no more is decoded. Arguments, result and errors as of `read_sound`.

    Args:
        path: the file.
        rate: wanted, in Hz.
        length: samples of the part, at `rate`.
        place: where it lies, in [0, 1]: 0 the beginning, 1 the end. A file that is shorter is read whole.

    Returns:
        (length,), or less.
    """
    with _opened(path) as file:
        needed = math.ceil(length * file.samplerate / rate)
        if needed >= file.frames:
            return _decoded(path, file, file.frames, rate)[:length]
        file.seek(min(int(place * (file.frames - needed + 1)), file.frames - needed))
        return _decoded(path, file, needed, rate)[:length]


def sampling_rate(path: str | Path) -> int:
    """Of a file, in Hz. Errors as of `read_sound`."""
    with _opened(path) as file:
        return int(file.samplerate)


def duration(path: str | Path) -> float:
    """Of a file, in seconds, as its header tells. Errors as of `read_sound`."""
    with _opened(path) as file:
        return float(file.frames / file.samplerate)


@contextmanager
def _opened(path: str | Path) -> Iterator[SoundFile]:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library is missing
        raise MissingPackageError("soundfile", "reading sound", "audio") from error
    path = Path(path)
    try:
        packed = shards.content(path)
    except shards.Unreadable as error:
        raise BadSample(path, str(error)) from error
    if packed is None and not path.is_file():
        raise BadSample(path, "there is no such file; correct the list or the folder that names it")
    if (path.stat().st_size if packed is None else len(packed)) == 0:
        raise BadSample(path, "is empty (0 bytes); fetch it again or remove it")
    try:
        with soundfile.SoundFile(str(path) if packed is None else BytesIO(packed)) as file:
            if file.frames == 0:
                raise BadSample(path, "holds no samples; remove it")
            yield file
    except soundfile.LibsndfileError as error:
        raise BadSample(
            path, f"cannot be decoded ({error.error_string}); expected wav, flac, ogg or mp3. Fetch it again or remove it"
        ) from error


def _decoded(path: str | Path, file: SoundFile, frames: int, rate: int) -> Tensor:
    data: Any = file.read(frames, dtype="float32", always_2d=True)
    if len(data) < max(1, frames - SLACK * file.samplerate):
        raise BadSample(path, f"ends after {len(data)} of {frames} samples; fetch it again or remove it")
    sound = torch.from_numpy(data).mean(1)
    if not bool(sound.isfinite().all()):
        raise BadSample(path, "has samples that are not finite (NaN or infinity); make it again or remove it")
    peak = float(sound.abs().max())
    if peak > LOUDEST:
        raise BadSample(
            path, f"reaches {peak:.4g}, where sound lies within [-1, 1]; divide its samples by their full scale, or remove it"
        )
    clipped = float((sound.abs() >= FULL_SCALE).float().mean())
    if clipped >= CLIPPED_SHARE:
        _tell_once("clipped", path, f"{clipped:.2%} of its samples are at full scale: it is clipped")
    if file.samplerate < rate:
        words = f"has {file.samplerate} Hz and is brought to {rate}: above {file.samplerate // 2} Hz it holds nothing"
        _tell_once("rate", path, words)
    return resample(sound.clamp(-1, 1), file.samplerate, rate).clamp(-1, 1)


def _tell_once(kind: str, path: str | Path, words: str) -> None:
    if kind not in _told:
        _told.add(kind)
        _LOG.warning("%s %s (further files of this kind are not named)", printable(path), words)


def as_paths(path: str | Path | Sequence[str]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(each).expanduser() for each in ([path] if isinstance(path, str | Path) else path)]
