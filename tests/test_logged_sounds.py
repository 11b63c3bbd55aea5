"""`logger.audio`: sound in the run folder and in TensorBoard."""

from __future__ import annotations

import logging
import wave
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import toys
from dlas.config import check
from dlas.context import Context
from dlas.data.images.files import read_image
from dlas.injectors.base import Injector, State
from dlas.observe.sounds import spectrogram_picture, wave_file
from dlas.registry import INJECTORS
from dlas.types import StateIn, StateOut
from runs import trainer

RATE = 8000


@INJECTORS.register("toy_tone")
class Tone(Injector):
    """A tone of 1 kHz for each picture of `in`, twice as loud as can be written."""

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.source, self.out = in_, out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tone = 2 * torch.sin(2 * torch.pi * 1000 / RATE * torch.arange(RATE))
        return {self.out: tone.repeat(len(state[self.source]), 1)[:, None]}


def test_a_run_writes_sounds_and_their_spectrograms(tmp_path, caplog):
    options = (
        "logger.audio={tone: 8000, gen: 8000}",
        "logger.visual_debug_rate=4",
        "logger.tensorboard=true",
        "steps.generator.injectors.tone={type: toy_tone, in: gen, out: tone}",
    )
    with caplog.at_level(logging.WARNING):
        assert trainer(tmp_path, toys.PSNR, *options).run().step == 8
    said = [record.getMessage() for record in caplog.records if "logger.audio" in record.getMessage()]
    assert said == ["logger.audio: 'gen' is not sound, (B, N) or (B, 1, N), in the state at step 4"]  # and once
    folder = tmp_path / "toy/visuals/tone"
    assert sorted(path.name for path in folder.iterdir()) == ["4.png", "4.wav", "8.png", "8.wav"]
    with wave.open(str(folder / "8.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert (file.getframerate(), file.getnchannels(), len(samples)) == (RATE, 1, RATE)
    assert np.abs(samples).max() == 32767 and np.abs(np.fft.rfft(samples)).argmax() == 1000
    rows = read_image(folder / "8.png").astype(int).sum((1, 2))
    assert abs((len(rows) - rows.argmax()) / len(rows) * RATE / 2 - 1000) < 50
    events = EventAccumulator(str(tmp_path / "toy/tb")).Reload()
    assert [event.step for event in events.Audio("audio/tone")] == [4, 8]
    assert events.Audio("audio/tone")[0].sample_rate == RATE
    assert [event.step for event in events.Images("audio/tone")] == [4, 8]


def test_what_is_never_heard_is_told_before(tmp_path):
    file = tmp_path / "toy.yml"
    file.write_text(toys.PSNR.replace("tensorboard: false", "audio: {tone: 8000}"))
    told = [str(problem) for problem in check(file)]
    assert any("nothing writes the state key 'tone', so it is never heard" in each for each in told), told
    file.write_text(toys.PSNR.replace("tensorboard: false", "audio: {gen: 0}"))
    assert any("logger.audio" in str(problem) for problem in check(file))


def test_spectrograms_of_any_length():
    generator = torch.Generator().manual_seed(0)
    for length in (2, 100, 44100):
        picture = spectrogram_picture(torch.randn(length, generator=generator), 22050)
        assert picture.shape[0] == 3 and 1 <= picture.shape[1] <= 256 and picture.min() >= 0 and picture.max() <= 1
    assert spectrogram_picture(torch.zeros(1000), 22050).isfinite().all()
    assert wave_file(torch.zeros(10), 8000)[:4] == b"RIFF" and len(wave_file(torch.zeros(10), 8000)) == 44 + 20
