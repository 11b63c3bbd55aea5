"""What was made of a picture, kept beside the results, so that a second call does only what is missing."""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dlas.data.images import lmdb_folder
from dlas.data.images.files import write_whole

NOTES = ".prepare"


class Written(NamedTuple):
    """A file that was made.

    Args:
        path: relative to the folder of the results.
        height: in pixels; 0 for what is no picture of the set.
        width: likewise.
        size: bytes; -1 while it is not known whether it is there.
        checksum: CRC-32.
    """

    path: str
    height: int
    width: int
    size: int = -1
    checksum: int = 0


@dataclass(frozen=True)
class Record:
    """What was made of one picture.

    Args:
        source: its path.
        size: of the source in bytes.
        mtime_ns: time of change of the source.
        flat: tiles that were left out.
        files: those that were made: tiles first, in order, then the others.
    """

    source: str
    size: int
    mtime_ns: int
    flat: int = 0
    files: list[Written] = field(default_factory=list)

    def is_of(self, source: Path) -> bool:
        """Whether it was made of this file as it is now."""
        return (self.source, self.size, self.mtime_ns) == (str(source), *identify(source))

    def pictures(self, folder: str) -> list[Written]:
        """The pictures of one of the folders of results."""
        return [file for file in self.files if file.height and file.path.startswith(f"{folder}/")]


def identify(source: Path) -> tuple[int, int]:
    """Size and time of change of a picture's file.

    Raises:
        OSError: it cannot be looked at.
    """
    status = (source.parent / "data.mdb" if lmdb_folder.is_inside(source) else source).stat()
    return status.st_size, status.st_mtime_ns


def file_of(out: Path, name: str) -> Path:
    """Where the record of a picture is."""
    return out / NOTES / "pictures" / f"{name}.json"


def write(out: Path, name: str, record: Record) -> None:
    """Writes a record."""
    write_whole(file_of(out, name), json.dumps(asdict(record)).encode())


def read(file: Path) -> Record | None:
    """A record; None if there is none that can be read."""
    try:
        tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Record(**{**tree, "files": [Written(*each) for each in tree["files"]]})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def faults(out: Path, record: Record, *, whole: bool) -> list[Written]:
    """The files of a record that are missing or not as they were written.

    Args:
        out: folder of the results.
        record: names them.
        whole: read them and compare with their checksums; else only their sizes are looked at.
    """
    return [file for file in record.files if not _is_sound(out / file.path, file, whole)]


def _is_sound(path: Path, file: Written, whole: bool) -> bool:
    try:
        return path.stat().st_size == file.size and (not whole or zlib.crc32(path.read_bytes()) == file.checksum)
    except OSError:
        return False


def remove(out: Path, files: list[Written]) -> None:
    """Removes files, and the folder of a picture that is then empty."""
    for file in files:
        path = out / file.path
        path.unlink(missing_ok=True)
        if path.parent.parent != out:
            with suppress(OSError):
                path.parent.rmdir()
