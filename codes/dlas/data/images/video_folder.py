"""A video as a folder of images: `clip.mp4/000012.png` stands for its frame 12, counted from 0 in the order of showing.

Frames are known by their times, which are read once from the whole video. So frame 12 is the same picture wherever reading
began: seeking alone lands beside it in videos of a variable rate and in some formats.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from dlas.errors import DataError, printable

ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})


def is_video(root: Path) -> bool:
    """Whether a path is that of a video file."""
    return root.suffix.lower() in ENDINGS and root.is_file()


def is_inside(path: str | Path) -> bool:
    """Whether a path stands for a frame of a video."""
    return is_video(Path(path).parent)


def entries(root: Path) -> list[str]:
    """The names of the frames.

    Raises:
        DataError: no frame of the video can be decoded.
    """
    return [f"{number:06d}.png" for number in range(len(_times(str(root), root.stat().st_mtime_ns)))]


def content(path: Path) -> bytes | None:
    """A frame as a PNG file of 8 bits; None if the video has no such frame, or it cannot be decoded.

    Raises:
        DataError: no frame of the video can be decoded.
    """
    if not path.stem.isdecimal():
        return None
    frame = _open(str(path.parent), path.parent.stat().st_mtime_ns, os.getpid()).frame(int(path.stem))
    if frame is None:
        return None
    done, data = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return data.tobytes()


class _Reader:
    """Reads frames in any order; fastest forwards."""

    def __init__(self, path: str, times: list[float]) -> None:
        self._path = path
        self._times = times
        self._video = cv2.VideoCapture(path)
        self._next = 0  # the frame that comes when reading goes on

    def frame(self, number: int) -> np.ndarray | None:
        """(height, width, 3), BGR, uint8."""
        if number >= len(self._times):
            return None
        if number != self._next and not self._seek(number):
            self._restart()
        while self._next < number and self._video.grab():
            self._next += 1
        done, image = self._video.read()
        if self._next != number or not done:
            self._restart()
            return None
        self._next += 1
        return image

    def _seek(self, number: int) -> bool:
        """Jumps to a frame before `number`, and finds out by its time which one it is."""
        if number == 0:
            return False
        self._video.set(cv2.CAP_PROP_POS_FRAMES, number - 1)
        if not self._video.grab():
            return False
        found = np.flatnonzero(np.asarray(self._times) == self._video.get(cv2.CAP_PROP_POS_MSEC))
        if len(found) != 1 or found[0] >= number:
            return False
        self._next = int(found[0]) + 1
        return True

    def _restart(self) -> None:
        self._video.release()
        self._video = cv2.VideoCapture(self._path)
        self._next = 0


@lru_cache(maxsize=16)
def _open(path: str, changed: int, process: int) -> _Reader:  # one for each process: decoders have threads and positions
    return _Reader(path, _times(path, changed))


@lru_cache(maxsize=1024)
def _times(path: str, changed: int) -> list[float]:
    """The time of each frame in milliseconds, from decoding the whole video; `changed` is the file's time of change."""
    video = cv2.VideoCapture(path)
    times = []
    while video.grab():
        times.append(video.get(cv2.CAP_PROP_POS_MSEC))
    video.release()
    if not times:
        raise DataError(
            f"{printable(path)}: no frame of this video can be decoded by OpenCV; convert it, for instance with ffmpeg"
        )
    return times
