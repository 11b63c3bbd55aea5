"""Decoded images on disk, mapped into memory: all processes share one copy, and a crop reads the pages that it lies on.

A file of the cache is a header of 64 bytes and the pixels, (H, W, 3). Its name depends on the path of the image and on what was
done to it (`variant`); its header holds size and time of the image, so that a changed image replaces its old pixels. It is
written under another name, brought to the disk, and renamed, so that a reader finds it whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dlas.data.images import lmdb_folder, video_folder
from dlas.data.images.files import ImageArray
from dlas.data.shards.folder import shard_of
from dlas.errors import ConfigurationError, DataError, printable

_LOG = logging.getLogger(__name__)

VARIABLE = "DLAS_CACHE_DIR"
_MAGIC = b"DLASPIX1"
# magic, height, width, bytes a value, checksum of the pixels, size and time of the image, digest of its name and the variant
_HEADER = struct.Struct("<8sIIII qq 16s")
_START = 64  # of the pixels; the last four bytes before it are the checksum of the header
_ENDING = ".pixels"
_ABANDONED = 3600.0  # seconds without a write, after which an unfinished file is one that a crash left behind
_ROOM = 1 << 30  # bytes of the disk that are left to others


class _Identity(NamedTuple):
    size: int
    mtime_ns: int
    digest: bytes


State = Literal["sound", "absent", "spoiled"]
"""Of an image in the cache. Pixels of another state of its file count as absent."""


class Room(NamedTuple):
    """Bytes that the cache may still take, by its budget and by what the disk has beside a GB for others."""

    budget: int
    disk: int


class _SpoiledError(Exception):
    """A file of the cache is damaged."""


class MappedCache:
    """Decoded images below a folder. It holds no open files, so it may be forked or sent to other processes.

    Args:
        folder: where; None takes `default_folder()`. It is made when the first image is asked for.
        gigabytes: how many may lie there, those of other data sets included. What does not fit is decoded at every visit.

    Raises:
        ConfigurationError: the budget is not positive.
    """

    def __init__(self, folder: str | Path | None, gigabytes: float) -> None:
        if not gigabytes > 0:
            raise ConfigurationError(f"cache_gb must be more than 0, got {gigabytes}")
        self.folder = default_folder() if folder is None else Path(folder).expanduser().absolute()
        self.budget = int(gigabytes * 1e9)
        self._opened = False
        self._full = False

    def open(self) -> None:
        """Makes the folder, removes what a crash left behind, and says how full the cache is. Once; `image` does it too.

        Raises:
            DataError: the folder cannot be made or written.
        """
        if self._opened:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked() as counter:
                used, count = _sweep(self.folder)
                _write_count(counter, used)
        except OSError as error:
            raise DataError(
                f"{printable(self.folder)}: the cache of decoded images cannot be kept there: {error.strerror}; give another "
                f"folder as cache_dir (or in the variable {VARIABLE}), or take `cache: none`"
            ) from error
        self._opened = True
        _LOG.info(
            "decoded images are kept in %s: %d there, %.2f of %.2f GB used (cache_gb)",
            printable(self.folder),
            count,
            used / 1e9,
            self.budget / 1e9,
        )

    def image(self, path: Path, variant: str, make: Callable[[], ImageArray]) -> ImageArray:
        """The pixels of an image, from the cache if they are there, else made and put there.

        Args:
            path: the file that they come from.
            variant: what else decides about the pixels: "" for the image as it is decoded.
            make: gives the pixels, (H, W, 3) of 8 or 16 bits.

        Returns:
            The pixels; not writable where they are mapped.

        Raises:
            BadSample: from `make`.
            DataError: the folder cannot be used.
        """
        self.open()
        name = _name(path, variant)
        try:
            identity = _identify(path, name)
        except OSError:  # to read the file says more of what is wrong with it
            return make()
        file = self._file(name)
        try:
            found = _map(file, identity)
        except _SpoiledError as error:
            _LOG.warning("%s: this file of the cache %s; it is made again", printable(file), error)
            found = None
        if found is None:
            found = make()
            self._put(file, identity, found)
        return found

    def state(self, path: Path, variant: str, *, whole: bool = False) -> State:
        """What is there for an image; nothing is changed.

        Args:
            path: the file that the pixels come from.
            variant: as for `image`.
            whole: read them all and compare with their checksum; else only the head is looked at.
        """
        name = _name(path, variant)
        try:
            return "absent" if _map(self._file(name), _identify(path, name), whole=whole) is None else "sound"
        except _SpoiledError:
            return "spoiled"
        except OSError:
            return "absent"

    def discard(self, path: Path, variant: str) -> None:
        """Removes what is there for an image."""
        file = self._file(_name(path, variant))
        with self._locked() as counter, suppress(FileNotFoundError):
            size = file.stat().st_size
            file.unlink()
            _write_count(counter, _read_count(counter, self.folder) - size)

    def room(self) -> Room:
        """What may still be put there.

        Raises:
            DataError: the folder cannot be used.
        """
        self.open()
        with self._locked() as counter:
            used = _read_count(counter, self.folder)
        return Room(max(self.budget - used, 0), max(_free(self.folder) - _ROOM, 0))

    def _file(self, name: bytes) -> Path:
        text = name.hex()
        return self.folder / text[:2] / f"{text[2:]}{_ENDING}"

    def _put(self, file: Path, identity: _Identity, pixels: ImageArray) -> None:
        pixels = np.ascontiguousarray(pixels)
        temporary = file.with_name(f".{file.stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            handle = self._reserve(file, temporary, _START + pixels.nbytes)
            if handle is None:
                return
            try:
                _write(handle, _header(identity, pixels), pixels)
            finally:
                os.close(handle)
            temporary.replace(file)
        except OSError as error:  # a full disk, say: the run does not need the cache
            temporary.unlink(missing_ok=True)
            self._say_full(error.strerror or str(error))

    def _reserve(self, file: Path, temporary: Path, size: int) -> int | None:
        """Takes room for a file, so that several processes together keep to the budget. None if there is none left."""
        with self._locked() as counter:
            replaced = file.stat().st_size if file.exists() else 0
            used = _read_count(counter, self.folder) - replaced
            if used + size > self.budget:
                self._say_full(f"{used / 1e9:.2f} of {self.budget / 1e9:.2f} GB are used (cache_gb)")
                return None
            if _free(self.folder) < size + _ROOM:
                self._say_full("less than 1 GB of the disk is free")
                return None
            file.parent.mkdir(exist_ok=True)
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.truncate(handle, size)
            _write_count(counter, used + size)
            return handle

    def _say_full(self, reason: str) -> None:
        if not self._full:
            self._full = True
            _LOG.warning(
                "the cache in %s takes no more images: %s; those that are not in it are decoded at every visit",
                printable(self.folder),
                reason,
            )

    @contextmanager
    def _locked(self) -> Iterator[int]:
        handle = os.open(self.folder / "used", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(ImportError, OSError):  # no locks there: the budget may be passed by an image for each process
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)  # and with it goes the lock


def default_folder() -> Path:
    """`$DLAS_CACHE_DIR`, or `dlas/images` in the user's folder of caches."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "dlas" / "images"


def _name(path: Path, variant: str) -> bytes:
    key = os.fsencode(os.path.abspath(path)) + b"\0" + variant.encode()  # noqa: PTH100  # Path.absolute keeps `..`
    return hashlib.blake2b(key, digest_size=16).digest()


def file_behind(path: Path) -> Path:
    """The file that an image lies in: itself, a database, a video or a shard."""
    if lmdb_folder.is_inside(path):
        return path.parent / "data.mdb"
    return path.parent if video_folder.is_inside(path) else shard_of(path) or path


def _identify(path: Path, name: bytes) -> _Identity:
    status = file_behind(path).stat()
    return _Identity(status.st_size, status.st_mtime_ns, name)


def _header(identity: _Identity, pixels: ImageArray) -> bytes:
    height, width = pixels.shape[:2]
    checksum = zlib.crc32(pixels.data)
    fields = _HEADER.pack(_MAGIC, height, width, pixels.itemsize, checksum, *identity)
    fields += bytes(_START - 4 - len(fields))
    return fields + struct.pack("<I", zlib.crc32(fields))


def size_of(height: int, width: int, itemsize: int) -> int:
    """Bytes that an image takes in the cache."""
    return _START + height * width * 3 * itemsize


def _map(file: Path, identity: _Identity, *, whole: bool = False) -> ImageArray | None:
    """The pixels of a file of the cache; None if it is missing or of another state of the image.

    Raises:
        _SpoiledError: it is damaged; the message says how.
    """
    try:
        opened = file.open("rb", buffering=0)
    except OSError:
        return None
    try:
        size = os.fstat(opened.fileno()).st_size
        header = opened.read(_START)
        if len(header) < _START or header[:8] != _MAGIC or zlib.crc32(header[:-4]) != struct.unpack("<I", header[-4:])[0]:
            raise _SpoiledError("has no valid header")
        _, height, width, itemsize, checksum, *known = _HEADER.unpack(header[: _HEADER.size])
        if tuple(known) != identity:
            return None
        if size != size_of(height, width, itemsize):
            raise _SpoiledError(f"has {size} bytes where {size_of(height, width, itemsize)} belong")
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise _SpoiledError(f"cannot be read: {error.strerror}") from error
    finally:
        opened.close()
    pixels: Any = np.frombuffer(mapped, np.uint8 if itemsize == 1 else np.uint16, offset=_START)
    if whole and zlib.crc32(pixels.data) != checksum:
        raise _SpoiledError("holds other pixels than were written")
    return pixels.reshape(height, width, 3)


def _write(handle: int, header: bytes, pixels: ImageArray) -> None:
    for part in (memoryview(header), pixels.data.cast("B")):
        while part:
            part = part[os.write(handle, part) :]
    os.fsync(handle)


def _sweep(folder: Path) -> tuple[int, int]:
    """Bytes and number of the images; unfinished files that are old are removed, the others count."""
    used = count = 0
    for entry in os.scandir(folder):
        if not entry.is_dir():
            continue
        for file in os.scandir(entry):
            try:
                status = file.stat()
                if file.name.endswith(".tmp") and time.time() - status.st_mtime > _ABANDONED:
                    os.unlink(file)  # noqa: PTH108
                    continue
            except OSError:  # another process was faster
                continue
            used += status.st_size
            count += file.name.endswith(_ENDING)
    return used, count


def _read_count(handle: int, folder: Path) -> int:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 64)
    try:
        return int(text)
    except ValueError:  # a crash while it was written
        return _sweep(folder)[0]


def _write_count(handle: int, used: int) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, f"{used:<32d}\n".encode())


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
