"""What was made of a picture, kept beside the results, so that a second call does only what is missing."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dlas.data.images.cache import file_behind
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


class Planned(NamedTuple):
    """A file that is to be made.

    Args:
        path: relative to the folder of the results.
        height: in pixels; 0 for what is no picture of the set.
        width: likewise.
        encode: gives its content.
    """

    path: str
    height: int
    width: int
    encode: Callable[[], bytes]


@dataclass(frozen=True)
class Record:
    """What was made of one picture, or of one recording.

    Args:
        source: its path.
        size: of the source in bytes.
        mtime_ns: time of change of the source.
        flat: tiles that were left out.
        files: those that were made: tiles first, in order, then the others.
        details: what else is known of it, as JSON holds it.
    """

    source: str
    size: int
    mtime_ns: int
    flat: int = 0
    files: list[Written] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

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
    status = file_behind(source).stat()
    return status.st_size, status.st_mtime_ns


def file_of(out: Path, name: str) -> Path:
    """Where the record of a source is."""
    return out / NOTES / "sources" / f"{name}.json"


def write(out: Path, name: str, record: Record) -> None:
    """Writes a record."""
    write_whole(file_of(out, name), json.dumps(asdict(record)).encode())


def make(out: Path, name: str, record: Record, earlier: Sequence[Written], planned: Sequence[Planned]) -> Record:
    """Writes the files of a record, and it.

    Their names are recorded before the first is written and their checksums after the last, so that after a kill the next call
    knows both what is missing and what may be there.

    Args:
        out: folder of the results.
        name: of the source.
        record: what is known of the source; its files are not looked at.
        earlier: files that an earlier call made of the source; those that are not made again are removed.
        planned: files to write.
    """
    paths = {each.path for each in planned}
    leftover = [file for file in earlier if file.path not in paths]
    begun = [Written(each.path, each.height, each.width) for each in planned]
    write(out, name, replace(record, files=begun + leftover))
    remove(out, leftover)
    written = []
    for each in planned:
        data = each.encode()
        write_whole(out / each.path, data)
        written.append(Written(each.path, each.height, each.width, len(data), zlib.crc32(data)))
    done = replace(record, files=written)
    write(out, name, done)
    return done


def read(file: Path) -> Record | None:
    """A record; None if there is none that can be read."""
    try:
        tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Record(**{**tree, "files": [Written(*each) for each in tree["files"]]})
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Seen(NamedTuple):
    """What there is of a source.

    Args:
        record: of an earlier call, if there is one.
        sound: whether it is of the source as it is now, with all its files; nothing has to be made then.
        identity: of the source, as `identify` gives it.
        spoiled: files that are missing or not as they were written.
    """

    record: Record | None
    sound: bool
    identity: tuple[int, int]
    spoiled: list[Written]

    @property
    def files(self) -> list[Written]:
        """Those of the record."""
        return self.record.files if self.record is not None else []


def look(out: Path, name: str, source: Path, *, whole: bool) -> Seen:
    """What an earlier call made of a source; arguments as of `faults`."""
    before, spoiled = read(file_of(out, name)), []
    try:
        identity = identify(source)
    except OSError:  # to read the file says more of what is wrong with it
        return Seen(before, False, (-1, -1), [])
    is_of_it = before is not None and before.is_of(source)
    if before is not None and is_of_it:
        spoiled = faults(out, before, whole=whole)
    return Seen(before, is_of_it and not spoiled, identity, spoiled)


def forget(out: Path, name: str, files: list[Written]) -> None:
    """Removes what an earlier call made of a source, and its record."""
    remove(out, files)
    file_of(out, name).unlink(missing_ok=True)


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
