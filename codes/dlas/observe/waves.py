"""Files of sound that any program plays."""

from __future__ import annotations

import io
import wave
from pathlib import Path

from torch import Tensor

from dlas.observe import disk


def pcm16(sound: Tensor) -> bytes:
    """Samples (N,) as whole numbers of 16 bits, little end first; cut off beyond [-1, 1], NaN is silence."""
    samples = (sound.detach().float().cpu().nan_to_num(0).clamp(-1, 1) * 32767).round().short()
    return samples.numpy().astype("<i2").tobytes()


def write_wav(path: Path, sound: Tensor, rate: int) -> None:
    """Writes a WAV file of one channel and 16 bits.

    Args:
        path: the file; its folder is made if it is missing.
        sound: (N,), cut off beyond [-1, 1]; NaN is silence.
        rate: in Hz.
    """
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm16(sound))
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace_text(path, content.getvalue())
