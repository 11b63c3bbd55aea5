"""What is measured of one sample's files: in a worker process, each file decoded once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np

from dlas.data.audit.alignment import Plane, estimate_shift
from dlas.data.audit.likeness import Likeness, likeness, luma
from dlas.data.base import BadSample
from dlas.data.images.files import ImageArray, read_with_header
from dlas.data.images.pairs import shrink
from dlas.data.images.video import first_unreadable
from dlas.data.inventory import Item

_CORRELATION_SIZE = 32


@dataclass(slots=True)
class FileFacts:
    """What one file is.

    Args:
        path: the file.
        error: why it cannot be used; then nothing else is known.
        width: pixels, as seen upright.
        height: likewise.
        bits: 8 or 16 per channel.
        mode: kind of pixels, as Pillow names it.
        format: by content, as Pillow names it.
        size_in_bytes: of the file.
        alpha: "none", "opaque" or "transparent".
        profile: name of the embedded colour profile, "" without one.
        orientation: EXIF orientation.
        frames: pictures in the file.
        deviation: standard deviation of luma, of 255.
        likeness: what to recognise it by; None for videos.
    """

    path: Path
    error: str | None = None
    width: int = 0
    height: int = 0
    bits: int = 8
    mode: str = ""
    format: str = ""
    size_in_bytes: int = 0
    alpha: str = "none"
    profile: str = ""
    orientation: int = 1
    frames: int = 1
    deviation: float = 0.0
    likeness: Likeness | None = None


@dataclass(slots=True)
class PairFacts:
    """How a low-quality image compares with the high-quality one made smaller by MATLAB's bicubic interpolation.

    Args:
        psnr: of luma in dB; infinite if they are equal.
        correlation: of both brought to 32 x 32, in [-1, 1]; None if one of them is plain.
        shift: (down, right) in low-quality pixels; None where it cannot be told.
    """

    psnr: float
    correlation: float | None
    shift: tuple[float, float] | None


@dataclass(slots=True)
class ItemFacts:
    """What one sample is made of."""

    files: dict[str, FileFacts] = field(default_factory=dict)
    pair: PairFacts | None = None


def examine(item: Item, scale: int) -> ItemFacts:
    """Reads the files of a sample, and compares the pair if their sizes allow it."""
    facts = ItemFacts()
    images: dict[str, tuple[ImageArray, Plane]] = {}
    for role, path in item.files.items():
        if item.frames:
            facts.files[role] = _video_facts(path, item.frames)
            continue
        try:
            image, facts.files[role] = _image_facts(path)
        except BadSample as error:
            facts.files[role] = FileFacts(path, error.reason)
            continue
        except MemoryError:
            facts.files[role] = FileFacts(path, "does not fit into memory when it is decoded; cut it into parts")
            continue
        images[role] = image
    if images.keys() >= {"hq", "lq"}:
        facts.pair = _pair_facts(images, scale)
    return facts


def _image_facts(path: Path) -> tuple[tuple[ImageArray, Plane], FileFacts]:
    image, header = read_with_header(path)
    brightness = luma(image)
    facts = FileFacts(
        path,
        None,
        image.shape[1],
        image.shape[0],
        image.dtype.itemsize * 8,
        header.mode,
        header.format,
        header.size_in_bytes,
        header.alpha,
        _profile_name(header.profile),
        header.orientation,
        header.frames,
        float(brightness.std(dtype=np.float64)),
        likeness(image, brightness),
    )
    return (image, brightness), facts


def _video_facts(path: Path, frames: tuple[int, ...]) -> FileFacts:
    bad, (height, width) = first_unreadable(path, frames)
    if bad is not None:
        return FileFacts(
            path, f"frame {bad} of {frames[-1] + 1} cannot be read; the file may be damaged or cut off: fetch it again"
        )
    return FileFacts(path, None, width, height, 8, "RGB", "video", path.stat().st_size, frames=len(frames))


def _pair_facts(images: Mapping[str, tuple[ImageArray, Plane]], scale: int) -> PairFacts | None:
    hq, lq = images["hq"][0], images["lq"][1]
    height, width = hq.shape[0] // scale, hq.shape[1] // scale
    if lq.shape != (height, width) or min(lq.shape) == 0:
        return None
    made = luma(shrink(hq[: height * scale, : width * scale], scale))
    error = float(np.mean((made - lq) ** 2, dtype=np.float64))
    psnr = math.inf if error == 0 else 10 * math.log10(255**2 / error)
    return PairFacts(psnr, _correlation(made, lq), estimate_shift(made, lq))


def _correlation(one: Plane, other: Plane) -> float | None:
    small = [
        cv2.resize(plane, (_CORRELATION_SIZE, _CORRELATION_SIZE), interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
        for plane in (one, other)
    ]
    a, b = (plane - plane.mean() for plane in small)
    if min(a.std(), b.std()) < 1:
        return None
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _profile_name(profile: bytes | None) -> str:
    if profile is None:
        return ""
    from PIL import ImageCms  # a part of Pillow that some builds lack

    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile))).strip() or "without a name"
    except (ImageCms.PyCMSError, OSError, ImportError):
        return "unreadable"
