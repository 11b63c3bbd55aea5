"""PNG files decoded down to the row that is needed: its rows are one stream, which can be left early but not entered late."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from dlas.data.base import BadSample
from dlas.data.images.files import ImageArray, read_bytes

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">IIBBBBB")  # width, height, depth, kind of colour, compression, filter, interlace
_GREY, _RGB = 0, 2
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_METADATA = (b"exif", b"xmp", b"xap")


class PngRows:
    """A sound PNG file of which parts may be read; made by `open_rows`.

    Args:
        data: the file.
        height: in pixels.
        width: in pixels.
    """

    def __init__(self, data: bytes, height: int, width: int) -> None:
        self._data = data
        self.shape = (height, width, 3)

    def __getitem__(self, window: tuple[slice, slice]) -> ImageArray:
        """A part, (h, w, 3), as from the decoded image; slices without a step."""
        (top, bottom, _), (left, right, _) = (each.indices(side) for each, side in zip(window, self.shape[:2], strict=True))
        # A header that promises fewer rows makes the decoder stop after them.
        shorter = bytearray(self._data)
        shorter[20:24] = struct.pack(">I", bottom)
        shorter[29:33] = struct.pack(">I", zlib.crc32(shorter[12:29]))
        with Image.open(BytesIO(shorter)) as image:
            return np.array(image.crop((left, top, right, bottom)).convert("RGB"))


def open_rows(path: str | Path) -> PngRows | None:
    """Opens a file for reading in part.

    All checksums of the file are verified, so that damage in the rows that are not decoded does not pass unseen.

    Returns:
        None for anything but a sound PNG of 8 bits a value, grey or RGB, neither interlaced nor turned by its metadata: that is
        for `read_image`, which knows what to do or what is wrong.
    """
    try:
        data = read_bytes(path)
    except BadSample:
        return None
    if not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, colour, _, _, interlace = _IHDR.unpack(data[16:29])
    if depth != 8 or colour not in (_GREY, _RGB) or interlace or not _is_plain(data):
        return None
    if min(height, width) < 1 or height * width > (Image.MAX_IMAGE_PIXELS or 0):
        return None
    return PngRows(data, height, width)


def _is_plain(data: bytes) -> bool:
    """Whether every chunk is whole, the last one is there, and none speaks of orientation."""
    place, view = len(_SIGNATURE), memoryview(data)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data) or zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if kind in (b"eXIf", b"acTL"):
            return False
        if kind in _TEXTS and any(word in data[place + 8 : end].lower() for word in _METADATA):
            return False
        if kind == b"IEND":
            return True
        place = end + 4
    return False
