"""Writing that survives a crash: bytes are on the disk before a name points to them, and a folder that has gone stays gone.

Every file operation is a call of `os`, one after the other, so that tests can let any of them fail, or be the last.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CLAIM = ".claim"


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Writes a file in one pass; when this returns its bytes are on the disk (the folder that names it: see `sync_folder`).

    Returns:
        {"bytes": size, "sha256": hexadecimal digest} of what was given, not of what a disk may make of it.
    """
    digest, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            digest.update(rest)
            size += len(rest)
            while rest:
                rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return {"bytes": size, "sha256": digest.hexdigest()}


def replace_text(path: Path, text: str | bytes) -> None:
    """Replaces a file: whoever reads it, and whoever starts after a crash, finds the old text or the new one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    write_file(partial, [text.encode() if isinstance(text, str) else text])
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(path: Path) -> None:
    """Removes a folder and all below it."""
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            remove_folder(Path(entry.path))
        else:
            Path(entry.path).unlink()
    path.rmdir()


def free_bytes(path: Path) -> int | None:
    """Room on the disk of a folder, for this user; None where the file system does not tell."""
    try:
        status = os.statvfs(path)
    except AttributeError:  # Windows
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def amount(count: int) -> str:
    """A number of bytes, for instance `1.2 GB`."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"


def reason(error: OSError) -> str:
    """What went wrong, in words: `No space left on device (/runs/a/metrics.jsonl)`."""
    where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return f"{error.strerror or error}{where}"


class Place:
    """A folder that must stay the one it was. When its disk is unmounted, what shows below the mount point is another one.

    Args:
        path: the folder.
        signed: leave a file there by which it is known again when its disk comes back under another device number.
    """

    def __init__(self, path: Path, signed: bool = False) -> None:
        self.path = path
        self.signed = signed
        self._identity: tuple[int, int] | None = None
        self._signature = ""

    def claim(self) -> None:
        """From now on this is the folder."""
        if self.signed:
            self._signature = secrets.token_hex(8)
            write_file(self.path / _CLAIM, [self._signature.encode()])
        self._identity = self._read_identity()

    def check(self) -> None:
        """Nothing, before `claim`.

        Raises:
            OSError: the folder has gone, or another one is in its place.
        """
        if self._identity is None:
            return
        try:
            identity = self._read_identity()
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "the folder has gone; was its disk unmounted?", str(self.path)) from error
        if identity == self._identity:
            return
        if self.signed and self._is_signed():
            self._identity = identity
            return
        message = "another folder is in the place of the one this run writes to; was its disk unmounted?"
        raise OSError(errno.ESTALE, message, str(self.path))

    def _read_identity(self) -> tuple[int, int]:
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def _is_signed(self) -> bool:
        try:
            return (self.path / _CLAIM).read_text(encoding="utf-8") == self._signature
        except (OSError, ValueError):
            return False
