"""PNG files decoded no further than needed: down to the last row of a window, and from its left edge to its right.

The rows of a PNG are one compressed stream, which can be left early but not entered late. A row is predicted from the one above
and from its own pixels further left, never from those further right (PNG specification, third edition, 9). So of a window

- the stream is decompressed down to the lowest row: by ISA-L where the package `isal` is installed, about twice as fast, else
  by zlib;
- prediction is undone from the last row above the window that does not depend on the row above it, and left of the window's
  right edge only. OpenCV does that, to which these rows are given as a smaller PNG of stored blocks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_deflate: Any
try:
    from isal import isal_zlib as _deflate
except ImportError:
    _deflate = zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">IIBBBBB")  # width, height, depth, kind of colour, compression, filter, interlace
_BLOCK = struct.Struct("<BHH")  # a stored block of a deflate stream: last or not, length, its complement (RFC 1951, 3.2.4)
_LONGEST_BLOCK = 0xFFFF
_ZLIB_HEADER = b"\x78\x01"
_CHANNELS = {0: 1, 2: 3}  # grey and RGB
_SUB, _PAETH = 1, 4  # filters; up to Sub a row does not depend on the one above, Paeth is the last one
_TEXTS = (b"tEXt", b"iTXt")
_HARMLESS = frozenset({b"bKGD", b"cHRM", b"gAMA", b"hIST", b"iCCP", b"pHYs", b"sBIT", b"sPLT", b"sRGB", b"tIME", b"tRNS"})


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int

    @property
    def pixel_bytes(self) -> int:
        return _CHANNELS[self.colour] * self.depth // 8

    @property
    def row_bytes(self) -> int:
        """With the byte that names the filter."""
        return 1 + self.width * self.pixel_bytes


class PngRows:
    """A PNG file of which parts may be read; made by `open_rows`.

    Args:
        header: what the file says of its image.
        stream: the compressed rows, in the pieces in which they lie in the file.
        otherwise: reads the whole image; asked where the rows turn out to be damaged, so that it tells what is wrong.
    """

    def __init__(self, header: _Header, stream: Sequence[memoryview], otherwise: Callable[[], NDArray[Any]]) -> None:
        self._header = header
        self._stream = stream
        self._otherwise = otherwise
        self.shape = (header.height, header.width, 3)

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[Any]:
        """A part, (h, w, 3) of 8 or 16 bits, as from the decoded image; slices without a step, of one pixel at least."""
        (top, bottom, _), (left, right, _) = (each.indices(side) for each, side in zip(window, self.shape[:2], strict=True))
        try:
            rows = self._decompress(bottom)
            filters = rows[:, 0]
            if filters.max() > _PAETH:
                raise ValueError("a row has an unknown filter")
            start = max(np.flatnonzero(filters[: top + 1] <= _SUB).tolist(), default=0)
            narrowed = self._header._replace(width=right, height=bottom - start)
            pixels = _unpredict(rows[start:, : narrowed.row_bytes], narrowed)[top - start :, left:]
        except (ValueError, MemoryError, cv2.error, _deflate.error):
            return self._otherwise()[window]
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)

    def _decompress(self, count: int) -> NDArray[np.uint8]:
        """The first rows as they are stored, (count, row_bytes). All of them have to end with the stream, and its checksum."""
        size, filled = count * self._header.row_bytes, 0
        rows = np.empty(size + 1, np.uint8)  # a byte more than there should be tells that there are more rows
        stream = _deflate.decompressobj()
        for part in self._stream:
            some = stream.decompress(part, len(rows) - filled)
            rows[filled : filled + len(some)] = np.frombuffer(some, np.uint8)
            filled += len(some)
            if filled > size or stream.eof:
                break
        if filled < size or (count == self._header.height and (filled > size or not stream.eof)):
            raise ValueError("there are fewer or more rows than the header says")
        return rows[:size].reshape(count, -1)


def open_rows(data: bytes, otherwise: Callable[[], NDArray[Any]]) -> PngRows | None:
    """Opens a PNG for reading in part.

    All checksums of its chunks are verified, so that damage in the rows that are not decoded does not pass unseen.

    Args:
        data: the file.
        otherwise: reads the whole image, or raises what is wrong with it.

    Returns:
        None for anything but a sound PNG of 8 or 16 bits a value, grey or RGB, neither interlaced nor turned by its metadata,
        nor too large: that is for the reader of whole files, which knows what to do or what is wrong.
    """
    if not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height, depth, colour, *methods = _IHDR.unpack(data[16:29])
    if depth not in (8, 16) or colour not in _CHANNELS or any(methods):
        return None
    header = _Header(width, height, depth, colour)
    if min(height, width) < 1 or height * width > (Image.MAX_IMAGE_PIXELS or 0) or header.row_bytes > _LONGEST_BLOCK:
        return None
    parts = _parts_of_stream(data)
    return PngRows(header, parts, otherwise) if parts else None


def _parts_of_stream(data: bytes) -> list[memoryview]:
    """The contents of IDAT. None of them if a chunk is damaged, unusual, out of order, or speaks of orientation."""
    place, view, parts, before = len(_SIGNATURE), memoryview(data), list[memoryview](), b""
    while place + 12 <= len(data):
        length = int.from_bytes(view[place : place + 4], "big")
        kind, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data) or _deflate.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return []
        if kind == b"IEND":
            return parts
        if kind == b"IDAT" and (not parts or before == b"IDAT"):
            parts.append(view[place + 8 : end])
        elif not (
            kind in _HARMLESS or (kind in _TEXTS and _is_idle(data[place + 8 : end])) or (kind == b"IHDR" and not before)
        ):
            return []
        place, before = end + 4, kind
    return []


def _is_idle(text: bytes) -> bool:
    """Whether a text cannot speak of orientation, as XMP and EXIF in hexadecimal digits may; compressed ones might."""
    keyword, _, content = text.lower().partition(b"\0")
    return b"orientation" not in content and not keyword.startswith(b"raw profile") and not content.startswith(b"\1")


def _unpredict(rows: NDArray[np.uint8], header: _Header) -> NDArray[Any]:
    """Pixels of rows as they are stored, (height, row_bytes): (height, width) grey or (height, width, 3) BGR."""
    count, length = rows.shape
    block = np.frombuffer(_BLOCK.pack(0, length, length ^ _LONGEST_BLOCK), np.uint8)
    start = len(_SIGNATURE) + 12 + _IHDR.size + 8 + len(_ZLIB_HEADER)
    end = start + count * (len(block) + length)
    png = np.empty(end + 4 + 4 + 12, np.uint8)
    png[: start - len(_ZLIB_HEADER) - 8] = np.frombuffer(_SIGNATURE + _chunk(b"IHDR", _IHDR.pack(*header, 0, 0, 0)), np.uint8)
    idat = struct.pack(">I", end + 4 - start + len(_ZLIB_HEADER)) + b"IDAT" + _ZLIB_HEADER
    png[start - len(idat) : start] = np.frombuffer(idat, np.uint8)
    blocks = png[start:end].reshape(count, -1)
    blocks[:, : len(block)] = block
    blocks[-1, 0] = 1
    blocks[:, len(block) :] = rows
    png[end : end + 4] = np.frombuffer(struct.pack(">I", _deflate.adler32(np.ascontiguousarray(rows))), np.uint8)
    checksum = _deflate.crc32(png[start - len(_ZLIB_HEADER) - 4 : end + 4])
    png[end + 4 :] = np.frombuffer(struct.pack(">I", checksum) + _chunk(b"IEND", b""), np.uint8)
    pixels: Any = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("OpenCV cannot undo the prediction of its rows")
    return pixels


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
