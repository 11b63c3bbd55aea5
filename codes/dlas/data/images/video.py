"""Frames of a video file, to run a network on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from dlas.data.base import BadSample, Dataset, Request, Sample
from dlas.data.images.files import to_tensor
from dlas.data.inventory import Inventory, Item
from dlas.errors import ConfigurationError, DataError
from dlas.registry import DATASETS
from dlas.types import NonNegativeFloat, PositiveFloat, PositiveInt


@DATASETS.register("video_frames")
class VideoFrames(Dataset):
    """Frames of a video at a steady rate, one a sample. It has no true pictures, so it is for testing only.

    Gives `lq` (float32 RGB in [0, 1]), `path` and `name` (the number of the frame).

    Args:
        phase: anything but "train".
        video_file: the video, of any kind that OpenCV reads.
        frame_rate: frames per second of the result; by default those of the file. A frame is the one shown at its time.
        start_at_seconds: time of the first frame.
        end_at_seconds: time after the last frame; by default the end of the video, and never after it.
        force_multiple: frames are filled up with black at the right and bottom until their sides are multiples of this.
        on_bad_file: `error` stops at a frame that cannot be decoded; `skip` leaves it out and reports it.

    Raises:
        ConfigurationError: it is to be trained on, or the span is empty.
        DataError: the file is missing or not a video.
    """

    provides = ("lq", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        video_file: str,
        frame_rate: PositiveFloat | None = None,
        start_at_seconds: NonNegativeFloat = 0.0,
        end_at_seconds: PositiveFloat | None = None,
        force_multiple: PositiveInt = 1,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        if phase == "train":
            raise ConfigurationError("video_frames has no true pictures, so it cannot be trained on")
        self.path = Path(video_file).expanduser()
        if not self.path.is_file():
            raise DataError(f"there is no video {self.path}; give its path as video_file")
        self.video = cv2.VideoCapture(str(self.path))
        count, own_rate = self.video.get(cv2.CAP_PROP_FRAME_COUNT), self.video.get(cv2.CAP_PROP_FPS)
        if not self.video.isOpened() or count < 1 or own_rate <= 0:
            raise DataError(f"{self.path} is not a video that OpenCV can read")
        rate = frame_rate or own_rate
        end = count / own_rate if end_at_seconds is None else min(end_at_seconds, count / own_rate)
        times = start_at_seconds + np.arange(max(round((end - start_at_seconds) * rate), 0)) / rate
        self.frames = np.minimum((times * own_rate + 1e-6).astype(int), int(count) - 1).tolist()
        if not self.frames:
            raise ConfigurationError(
                f"no frame lies between start_at_seconds {start_at_seconds} and the end at {end:.3f} seconds; lower the start"
            )
        self.multiple = force_multiple
        self.on_bad_file = on_bad_file
        self._next = 0

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        found = cls(phase, **options)  # only the file knows its frames
        return Inventory([Item({"video": found.path}, tuple(found.frames))])

    def __len__(self) -> int:
        return len(self.frames)

    def source(self, index: int) -> str:
        return f"{self.path}, frame {self.frames[index]}"

    def __getitem__(self, request: Request) -> Sample:
        frame = self.frames[request.index]
        if frame != self._next:  # seeking is slow, and reading on is exact
            self.video.set(cv2.CAP_PROP_POS_FRAMES, frame)
        done, image = self.video.read()
        self._next = frame + 1
        if not done:
            self._next = -1
            raise BadSample(self.path, f"frame {frame} cannot be read; the file may be damaged: shorten end_at_seconds")
        height, width = (-(-size // self.multiple) * self.multiple for size in image.shape[:2])
        padded = np.zeros((height, width, 3), np.uint8)
        padded[: image.shape[0], : image.shape[1]] = image[:, :, ::-1]
        return {"lq": to_tensor(padded), "path": self.source(request.index), "name": f"{request.index:06d}"}


def first_unreadable(path: Path, frames: Sequence[int]) -> tuple[int | None, tuple[int, int]]:
    """Decodes a video once from its start.

    Args:
        path: the video.
        frames: the frames that are needed, in ascending order.

    Returns:
        The first of `frames` that cannot be decoded, or None; and height and width of the pictures.
    """
    video = cv2.VideoCapture(str(path))
    try:
        for frame in range(frames[-1] + 1):
            if not video.grab() or (frame == frames[0] and not video.retrieve()[0]):
                return frame, (0, 0)
        return None, (int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(video.get(cv2.CAP_PROP_FRAME_WIDTH)))
    finally:
        video.release()
