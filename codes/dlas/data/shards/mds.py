"""Samples in MosaicML's MDS format: `index.json`, and shards with a table of offsets.

A shard holds the number of its samples (uint32), that many offsets and the end (uint32 each), its columns as JSON, and the
samples: sizes of the columns of variable size (uint32 each), then the values of all columns. Little endian.

Sample 12 is a few files: `00000012.png` for a column of images, or with several such columns `00000012.NAME.png` each, and
`00000012.json` with texts and numbers, by column. A column of texts that is called `txt` or `json` is a file of that ending.

Source: docs.mosaicml.com/projects/streaming, "Dataset Format"; version 2 of the format.
"""

from __future__ import annotations

import bisect
import bz2
import gzip
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlas.errors import DataError, MissingPackageError, printable

VERSION = 2
_NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_TEXTS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "str_int": int,
    "str_float": float,
    "str_decimal": str,
    "json": json.loads,
}
_TEXT_FILES = (".txt", ".json")
_PICTURES = {"jpeg": ".jpg", "png": ".png", "pil": ".png"}
_MEDIA = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "gif", "wav", "flac", "ogg", "mp3", "opus")
_BEGINNINGS = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
)
_FETCH = "fetch it again"


class Column(NamedTuple):
    """A column of the samples.

    Args:
        name: of the column.
        encoding: how its values are stored.
        size: in bytes; None if each has its own.
        ending: of the files that its values are; empty for what goes into the one JSON file of a sample.
    """

    name: str
    encoding: str
    size: int | None
    ending: str


class _Shard(NamedTuple):
    file: Path
    bytes: int
    samples: int
    packed: Path | None
    compression: str


class Samples:
    """All samples of an `index.json`.

    Args:
        index: the file.

    Raises:
        DataError: it is damaged or of another kind, or a shard is missing or has another size.
    """

    def __init__(self, index: Path) -> None:
        entries = _shards_in(index)
        self.shards = [_shard(index.parent, each) for each in entries]
        self._ends = list(accumulate(shard.samples for shard in self.shards))
        self._columns = [_columns(each) for each in entries]
        for shard in self.shards:
            _check(shard, index)
        self._entries: dict[str, tuple[int, str]] | None = None
        first = next((number for number, shard in enumerate(self.shards) if shard.samples), None)
        if first is not None:
            values = self._values(first, 0)
            endings = {name: _ending(name, encoding, values[name]) for name, encoding, _, _ in self._columns[first]}
            self._columns = [
                [each._replace(ending=endings.get(each.name, "")) for each in columns] for columns in self._columns
            ]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def names(self) -> list[str]:
        """Of the files, those of a sample together."""
        return list(self._files())

    def size(self, name: str) -> int:
        """Of a file in bytes."""
        return len(self.read(name) or b"")

    def shard(self, name: str) -> Path:
        """The shard that a file is in."""
        shard = self.shards[bisect.bisect_right(self._ends, self._files()[name][0])]
        return shard.file if shard.packed is None or shard.file.is_file() else shard.packed

    def read(self, name: str) -> bytes | None:
        """A file; None if there is none of this name.

        Raises:
            DataError: the shard is damaged; the place is named.
        """
        found = self._files().get(name)
        if found is None:
            return None
        number, column = found
        part = bisect.bisect_right(self._ends, number)
        values = self._values(part, number - (self._ends[part - 1] if part else 0))
        if not column:
            told = {each.name: _plain(each.encoding, values[each.name]) for each in self._columns[part] if _is_told(each)}
            return json.dumps(told, ensure_ascii=False).encode()
        encoding = next(each.encoding for each in self._columns[part] if each.name == column)
        return _png(values[column]) if encoding == "pil" else values[column]

    def _files(self) -> dict[str, tuple[int, str]]:
        """Number and column by name of the file; the column is empty for all texts and numbers."""
        if self._entries is None:
            self._entries = {}
            for number in range(len(self)):
                columns = self._columns[bisect.bisect_right(self._ends, number)]
                files = [each for each in columns if each.ending]
                several = sum(each.ending not in _TEXT_FILES for each in files) > 1
                for each in files:
                    middle = f".{each.name}" if several and each.ending not in _TEXT_FILES else ""
                    self._entries[f"{number:08d}{middle}{each.ending}"] = number, each.name
                if any(map(_is_told, columns)):
                    self._entries.setdefault(f"{number:08d}.json", (number, ""))
        return self._entries

    def _values(self, part: int, row: int) -> dict[str, bytes]:
        shard = self.shards[part]
        columns = self._columns[part]
        path = _unpacked(shard)
        with path.open("rb", buffering=0) as file:
            begin, end = _numbers(file, path, 4 * (1 + row), 2)
            if not begin <= end <= shard.bytes:
                raise DataError(
                    f"shard {printable(path)}, byte {4 * (1 + row)}: sample {row} cannot lie from {begin} to {end} of "
                    f"{shard.bytes} bytes; {_FETCH}"
                )
            file.seek(begin)
            data = file.read(end - begin)
        variable = [each for each in columns if each.size is None]
        head = 4 * len(variable)
        known = iter(struct.unpack(f"<{len(variable)}I", data[:head]) if len(data) >= head else ())
        sizes = [each.size if each.size is not None else next(known, -1) for each in columns]
        if head + sum(sizes) != len(data):
            raise DataError(
                f"shard {printable(path)}, byte {begin}: sample {row} is damaged: it has {len(data)} bytes, and its columns "
                f"{head + sum(sizes)}; {_FETCH}"
            )
        ends = list(accumulate(sizes, initial=head))
        return {each.name: data[start:stop] for each, start, stop in zip(columns, ends, ends[1:], strict=False)}


def is_index(path: Path) -> bool:
    """Whether a file tells of shards of this format."""
    try:
        return path.is_file() and isinstance(json.loads(path.read_bytes()).get("shards"), list)
    except (OSError, ValueError, AttributeError):
        return False


def _shards_in(index: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(index.read_bytes())["shards"]
        kinds = {(each["format"], each["version"]) for each in found}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{printable(index)}: is no index of shards ({type(error).__name__}: {error}); {_FETCH}") from error
    if kinds - {("mds", VERSION)}:
        raise DataError(f"{printable(index)}: has shards of another kind, {kinds}; expected mds, version {VERSION}")
    return found


def _shard(folder: Path, entry: dict[str, Any]) -> _Shard:
    raw, packed = entry["raw_data"], entry.get("zip_data")
    there = folder / packed["basename"] if packed else None
    return _Shard(folder / raw["basename"], raw["bytes"], entry["samples"], there, entry.get("compression") or "")


def _columns(entry: dict[str, Any]) -> list[Column]:
    found = zip(entry["column_names"], entry["column_encodings"], entry["column_sizes"], strict=True)
    return [Column(name, encoding, size, "") for name, encoding, size in found]


def _check(shard: _Shard, index: Path) -> None:
    file = shard.file if shard.file.is_file() else shard.packed
    if file is None or not file.is_file():
        raise DataError(f"{printable(shard.file)}: this shard does not exist, and {printable(index)} names it; fetch it")
    if file == shard.file and file.stat().st_size != shard.bytes:
        raise DataError(
            f"{printable(file)}: has {file.stat().st_size} bytes where {printable(index)} says {shard.bytes}; {_FETCH}"
        )


def _unpacked(shard: _Shard) -> Path:
    """The shard itself; of one that lies there compressed, its copy among the caches, which is made at the first use."""
    if shard.packed is None or shard.file.is_file():
        return shard.file
    from dlas.data.images.cache import default_folder
    from dlas.data.images.files import write_whole

    status = shard.packed.stat()
    identity = f"{os.path.abspath(shard.packed)} {status.st_size} {status.st_mtime_ns}"  # noqa: PTH100  # as the images' cache
    place = default_folder().parent / "shards" / f"{hashlib.blake2b(os.fsencode(identity), digest_size=16).hexdigest()}.mds"
    if not place.is_file() or place.stat().st_size != shard.bytes:
        data = _decompressed(shard.packed, shard.compression.partition(":")[0])
        if len(data) != shard.bytes:
            raise DataError(f"{printable(shard.packed)}: unpacks to {len(data)} bytes where {shard.bytes} belong; {_FETCH}")
        write_whole(place, data)
    return place


def _decompressed(path: Path, compression: str) -> bytes:
    data = path.read_bytes()
    try:
        if compression == "gz":
            return gzip.decompress(data)
        if compression == "bz2":
            return bz2.decompress(data)
        if compression == "zstd":
            return _zstandard(data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{printable(path)}: is damaged and cannot be unpacked ({error}); {_FETCH}") from error
    raise DataError(
        f"{printable(path)}: is compressed by '{compression}'; known are zstd, gz and bz2: unpack it, or write it anew"
    )


def _zstandard(data: bytes) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise MissingPackageError("zstandard", "a shard that is compressed by zstd", "shards") from error
    try:
        unpacked: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return unpacked


def _numbers(file: Any, path: Path, place: int, count: int) -> tuple[int, ...]:
    file.seek(place)
    data = file.read(4 * count)
    if len(data) != 4 * count:
        raise DataError(f"shard {printable(path)}, byte {place}: ends in its table of offsets; {_FETCH}")
    return struct.unpack(f"<{count}I", data)


def _is_told(column: Column) -> bool:
    """Whether it goes into the JSON file of a sample. Names like `__key__` are for other programs."""
    known = column.encoding in (*_NUMBERS, *_TEXTS, "int")
    return known and not column.ending and not column.name.startswith("__")


def _ending(name: str, encoding: str, value: bytes) -> str:
    if encoding in _PICTURES:
        return _PICTURES[encoding]
    if encoding in ("str", "json"):
        return f".{name}" if f".{name}" in _TEXT_FILES else ""
    if encoding != "bytes":
        return ""
    last = name.rpartition(".")[2].lower()
    if last in _MEDIA:
        return f".{last}"
    if value[:4] == b"RIFF":
        return ".webp" if value[8:12] == b"WEBP" else ".wav"
    return next((ending for beginning, ending in _BEGINNINGS if value.startswith(beginning)), "")


def _plain(encoding: str, value: bytes) -> Any:
    """A text or number as JSON has it."""
    if encoding == "int":
        encoding = "int64"
    if encoding in _NUMBERS:
        return np.frombuffer(value, np.dtype(encoding).newbyteorder("<"))[0].item()
    return _TEXTS[encoding](value.decode("utf-8"))


def _png(value: bytes) -> bytes:
    """Of an image of the encoding `pil`: width, height, length of the mode's name (uint32 each), the name, and the pixels."""
    width, height, length = struct.unpack("<3I", value[:12])
    mode = value[12 : 12 + length].decode()
    channels = {"L": 1, "RGB": 3, "RGBA": 4}.get(mode)
    pixels = np.frombuffer(value, np.uint8, offset=12 + length)
    if channels is None or pixels.size != width * height * channels:
        raise DataError(
            f"an image of mode '{mode}' with {pixels.size} bytes for {width} x {height} pixels; expected L, RGB or RGBA"
        )
    import cv2  # here, since few need it

    image = pixels.reshape(height, width, channels)
    done, data = cv2.imencode(
        ".png", image if channels == 1 else image[:, :, [2, 1, 0, 3][:channels]], [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    assert done
    return data.tobytes()
