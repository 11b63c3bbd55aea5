"""Files of sound: WAV by the standard library, other kinds by soundfile."""

from __future__ import annotations

import wave
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dlas.errors import DataError, MissingPackageError

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aiff", ".opus"})


def read_sound(path: Path) -> tuple[Tensor, int]:
    """One channel of sound, the mean of all: (N,), float32; and its rate in Hz.

    Raises:
        DataError: there is no such file, or it holds no sound, or numbers that are not finite.
        MissingPackageError: it is not WAV of 16 bits, and soundfile is not installed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; a clip of sound was expected ({', '.join(sorted(SOUNDS))})")
    soundfile = _soundfile()
    if soundfile is None:
        channels, rate = _read_wav(path)
    else:
        try:
            array, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{path}: cannot be read as sound ({error}); expected {', '.join(sorted(SOUNDS))}") from error
        channels = torch.from_numpy(array)
    if not len(channels):
        raise DataError(f"{path}: there is no sound in this file; take it out, or copy it again")
    sound = channels.mean(1)
    if not bool(sound.isfinite().all()):
        raise DataError(f"{path}: holds numbers that are not finite; make it again")
    return sound, rate


def write_wav(path: Path, sound: Tensor, rate: int) -> None:
    """Writes one channel, (N,) within [-1, 1], in 16 bits."""
    with path.open("wb") as file, wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(pcm16(sound))


def pcm16(sound: Tensor) -> bytes:
    """Samples (N,) within [-1, 1] as whole numbers of 16 bits, little end first."""
    return (sound.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy().astype("<i2").tobytes()


def _soundfile() -> ModuleType | None:
    try:
        import soundfile
    except (ImportError, OSError):  # the package, or the library that it loads
        return None
    return soundfile


def _read_wav(path: Path) -> tuple[Tensor, int]:
    if path.suffix.lower() != ".wav":
        raise MissingPackageError("soundfile", f"reading {path}", "audio")
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                raise MissingPackageError("soundfile", f"reading {path}, whose samples have not 16 bits,", "audio")
            count, rate = file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise DataError(f"{path}: cannot be read as WAV ({error}); other kinds need 'dlas[audio]'") from error
    whole = len(data) // (2 * count) * 2 * count
    samples = torch.frombuffer(bytearray(data[:whole]), dtype=torch.int16) if whole else torch.empty(0, dtype=torch.int16)
    return samples.view(-1, count).float() / 32768, rate
