"""Where the files in a tar shard lie. A shard is walked from header to header, or has its index beside it.

The index of `0000.tar` is `0000.tar.index`: JSON with `size` of the shard and `members`, a list of [name, offset, size]. It
only saves the walk: whoever reads a member looks at the header before it.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block".
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dlas.errors import DataError, printable

BLOCK = 512
INDEX_ENDING = ".index"
VERSION = 1
_FETCH = "fetch it again"


class Member(NamedTuple):
    """A file in a shard.

    Args:
        name: its path in the shard.
        offset: of its first byte.
        size: in bytes.
    """

    name: str
    offset: int
    size: int


def members(path: Path) -> list[Member]:
    """The files in a shard, in their order.

    Raises:
        DataError: it is damaged or cut off; the place is named.
    """
    return _indexed(path) or list(_walked(path))


def index_file(path: Path) -> Path:
    """Where a shard's index is."""
    return path.with_name(path.name + INDEX_ENDING)


def index_text(found: list[Member], size: int) -> bytes:
    """The index of a shard of so many bytes."""
    return json.dumps({"version": VERSION, "size": size, "members": found}, ensure_ascii=False).encode()


def fault(file: BinaryIO, member: Member) -> str | None:
    """What is wrong with the header of a member; None if it is the one that the index tells of."""
    start = member.offset - BLOCK
    file.seek(start)
    try:
        size = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape").size
    except tarfile.HeaderError as error:
        return f"byte {start}: has no valid header ({error})"
    # A pax record may tell a size that its header cannot.
    return None if size in (member.size, 0) else f"byte {start}: is a file of {size} bytes, not of {member.size}"


def _indexed(path: Path) -> list[Member] | None:
    try:
        found = json.loads(index_file(path).read_bytes())
        if found["version"] != VERSION or found["size"] != path.stat().st_size:
            return None
        return [Member(*each) for each in found["members"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None  # whatever it is, the shard can be walked


def _walked(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        told: dict[str, str] = {}
        while place < size:
            file.seek(place)
            block = file.read(BLOCK)
            if not any(block):
                return
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                what = "is no tar file" if place == 0 else "is damaged"
                raise DataError(f"{printable(path)}: {what} ({error} at byte {place} of {size}); {_FETCH}") from error
            length = int(told.get("size", header.size))
            start, place = place + BLOCK, place + BLOCK + -(-length // BLOCK) * BLOCK
            if start + length > size:
                raise DataError(
                    f"{printable(path)}: is cut off after {size} bytes: {printable(header.name)} at byte {start} has {length}; "
                    f"{_FETCH}"
                )
            if header.type == tarfile.GNUTYPE_LONGNAME:
                told["path"] = os.fsdecode(file.read(length).rstrip(b"\0"))
            elif header.type == tarfile.XHDTYPE:
                told |= _records(file.read(length))
            elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
                if header.isreg():
                    yield Member(told.get("path", header.name).removeprefix("./"), start, length)
                told = {}


def _records(data: bytes) -> dict[str, str]:
    """Of a pax header: `length keyword=value` and a line break, each; the length is that of the whole record."""
    found = {}
    while data:
        length = int(data.split(b" ", 1)[0])
        keyword, _, value = data[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        found[keyword.decode()] = os.fsdecode(value)
        data = data[length:]
    return found
