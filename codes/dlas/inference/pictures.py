"""Pictures from files and into files with all that belongs to them: alpha, 16 bits, grey, the colour profile."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dlas.data.images.files import read_with_alpha, to_tensor, write_whole
from dlas.errors import DataError

FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tif": ".tif"}
"""What is written, by the name of the format."""

WRITABLE = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
_SIXTEEN = frozenset({".png", ".tif", ".tiff"})
_WITHOUT_ALPHA = frozenset({".jpg", ".jpeg", ".bmp"})
_PROFILED = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        color: (3, height, width) RGB or (1, height, width) grey, in [0, 1].
        alpha: (1, height, width) in [0, 1], if it has some.
        bits: 8 or 16.
        profile: its colour profile, which is kept and not applied.
    """

    color: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    profile: bytes | None = None


def read_picture(path: Path) -> Picture:
    """Reads a file.

    Raises:
        BadSample: it cannot be read.
    """
    pixels, alpha, header = read_with_alpha(path)
    color = to_tensor(pixels)
    if header.mode in ("1", "L", "LA") or header.mode.startswith("I"):
        color = color[:1]
    opacity = None if alpha is None else to_tensor(alpha[:, :, None])
    profile = (
        header.profile if header.mode not in ("CMYK", "LAB", "YCbCr") else None
    )  # it describes the values before conversion
    return Picture(color, opacity, 16 if pixels.dtype == np.uint16 else 8, profile)


def write_picture(path: Path, picture: Picture, quality: int = 95) -> None:
    """Writes a file, complete or not at all. What the format cannot hold is left out: alpha of JPEG and BMP is put on white.

    Args:
        path: the file; its ending tells the format, its folder is made if it is missing.
        picture: values outside [0, 1] are clipped.
        quality: of JPEG and WebP; 100 is lossless WebP.

    Raises:
        DataError: the ending is of no format that can be written, or the format cannot hold a picture as large.
    """
    ending = path.suffix.lower()
    if ending not in WRITABLE:
        raise DataError(f"{path}: pictures are not written as '{ending}'; expected one of {' '.join(sorted(WRITABLE))}")
    if picture.alpha is not None and ending in _WITHOUT_ALPHA:
        picture = replace(picture, color=picture.color * picture.alpha + 1 - picture.alpha, alpha=None)
    bits = picture.bits if ending in _SIXTEEN else 8
    array = _pixels(picture, bits)
    try:
        data = _sixteen(array, ending, picture.profile) if bits == 16 else _eight(array, ending, picture.profile, quality)
    except (OSError, ValueError, cv2.error) as error:
        raise DataError(f"{path}: cannot be written as '{ending}' ({array.shape[1]} x {array.shape[0]}): {error}") from error
    write_whole(path, data)


def _pixels(picture: Picture, bits: int) -> Any:
    parts = [picture.color] if picture.alpha is None else [picture.color, picture.alpha]
    values = torch.cat(parts).float().nan_to_num(nan=0.0).clamp(0, 1).mul(2**bits - 1).round()
    return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy().astype(np.uint8 if bits == 8 else np.uint16))


def _eight(array: Any, ending: str, profile: bytes | None, quality: int) -> bytes:
    image = Image.fromarray(
        array[:, :, 0] if array.shape[2] == 1 else array, {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[array.shape[2]]
    )
    options: dict[str, Any] = {"icc_profile": profile} if profile and ending in _PROFILED else {}
    if ending in (".jpg", ".jpeg"):
        options |= {"quality": quality, "subsampling": 0}
    elif ending == ".webp":
        options |= {"quality": quality, "lossless": quality == 100}
    elif ending in (".tif", ".tiff"):
        options["compression"] = "tiff_deflate"
    stream = BytesIO()
    image.save(stream, Image.registered_extensions()[ending], **options)
    return stream.getvalue()


def _sixteen(array: Any, ending: str, profile: bytes | None) -> bytes:
    if array.shape[2] == 2:  # OpenCV has no grey with alpha
        array = array[:, :, [0, 0, 0, 1]]
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[array.shape[2]]
    done, data = cv2.imencode(ending, np.ascontiguousarray(array[:, :, order]))
    if not done:
        raise ValueError("OpenCV refuses it")
    content = bytes(data.tobytes())
    return _with_profile(content, profile) if profile and ending == ".png" else content


def _with_profile(png: bytes, profile: bytes) -> bytes:
    """Puts an iCCP chunk behind the header (PNG specification, 11.3.2.3)."""
    body = b"iCCP" + b"profile\0\0" + zlib.compress(profile)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    end = 8 + 25  # signature and IHDR
    return png[:end] + chunk + png[end:]
