"""What a training step made, to look at and to listen to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from dlas.config.schema import LoggerConfig
from dlas.data.images.files import write_png, write_whole
from dlas.engine.results import as_pictures
from dlas.observe.console import LOGGER
from dlas.observe.pictures import grid
from dlas.observe.recorder import Recorder
from dlas.observe.run_folder import RunFolder
from dlas.observe.sounds import spectrogram_picture, wave_file


class Visuals:
    """Writes pictures and sound of state keys into <run>/visuals and TensorBoard.

    Args:
        section: which keys and how often.
        folder: of the run.
    """

    def __init__(self, section: LoggerConfig, folder: RunFolder) -> None:
        self.section, self.folder = section, folder
        self._not_shown: set[str] = set()  # told of once

    def due(self, step: int) -> bool:
        """Whether something is written at a step."""
        return bool(self.section.visuals or self.section.audio) and step % self.section.visual_debug_rate == 0

    def write(self, state: Mapping[str, Any], step: int, recorder: Recorder) -> None:
        """Writes what the state has under the keys."""
        for key in self.section.visuals:
            value = state.get(key)
            shown = as_pictures(value, self.section.reverse_n1_to_1) if isinstance(value, Tensor) else None
            if isinstance(value, Tensor) and shown is not None:
                picture = grid(shown, columns=8 if value.dim() == 4 else 1)
                target = self.folder.visuals / key / f"{step}.png"
                self.folder.dispensable("visuals", partial(write_png, target, picture))
                recorder.image(f"visuals/{key}", picture, step)
            else:
                self._tell(key, f"logger.visuals: '{key}' is not a batch of images in the state at step {step}")
        for key, rate in self.section.audio.items():
            value = state.get(key)
            if not isinstance(value, Tensor) or value.dim() not in (2, 3) or (value.dim() == 3 and value.shape[1] != 1):
                self._tell(key, f"logger.audio: '{key}' is not sound, (B, N) or (B, 1, N), in the state at step {step}")
                continue
            sound = value.detach()[0].flatten().float().cpu()
            picture, target = spectrogram_picture(sound, rate), self.folder.visuals / key / str(step)
            self.folder.dispensable("visuals", partial(write_whole, target.with_suffix(".wav"), wave_file(sound, rate)))
            self.folder.dispensable("visuals", partial(write_png, target.with_suffix(".png"), picture))
            recorder.sound(f"audio/{key}", sound, rate, step)
            recorder.image(f"audio/{key}", picture, step)

    def _tell(self, key: str, words: str) -> None:
        if key not in self._not_shown:
            LOGGER.warning(words)
        self._not_shown.add(key)
