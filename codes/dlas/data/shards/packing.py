"""Packing a folder of files into shards."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from dlas.data.images.files import natural_order, walk, write_whole
from dlas.data.shards import mds, tar
from dlas.data.shards.names import MDS, TAR, key_and_ending
from dlas.errors import ConfigurationError, DataError, printable

Format: TypeAlias = Literal["tar", "mds"]

_PLAN = "plan.json"
_ENCODINGS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "txt": "str", "json": "json"}
_KEY = "__key__"


class _File(NamedTuple):
    name: str
    path: Path
    size: int


_Group = list[_File]
"""The files of one key."""


@dataclass
class Packed:
    """What was packed.

    Args:
        samples: keys.
        files: in all.
        shards: in all.
        made: of them, now.
    """

    samples: int
    files: int
    shards: int
    made: int = 0


def pack(folder: Path, out: Path, kind: Format, shard_bytes: int, done: Callable[[int], None] = lambda n: None) -> Packed:
    """Packs the files below a folder. Files of one key (`0001.png`, `0001.txt`) are in one shard, in natural order.

    Shards appear whole or not at all; the same call goes on where one was stopped. Equal files make equal shards.

    Args:
        folder: hidden files are left out.
        out: folder for the shards.
        kind: `tar` as webdataset has it, with an index beside each shard; `mds` as MosaicML streaming has it.
        shard_bytes: a shard is closed before its files are more than this, if it has any.
        done: is told the number of samples of each shard that is there.

    Raises:
        ConfigurationError: `out` holds something else, or shards of other files.
        DataError: the folder is missing or empty, or its files do not fit the format.
    """
    groups = _groups(folder)
    if kind == "mds":
        _uniform(groups, folder)
    parts = list(_parts(groups, shard_bytes))
    _begin(out, groups, kind, shard_bytes)
    packed = Packed(len(groups), sum(map(len, groups)), len(parts))
    entries = []
    for number, part in enumerate(parts):
        if kind == "tar":
            packed.made += _tar(out / f"{number:05d}{TAR}", part)
        else:
            made, entry = _mds(out / f"shard.{number:05d}.mds", part, shard_bytes)
            packed.made += made
            entries.append(entry)
        done(len(part))
    if entries:
        write_whole(out / MDS, json.dumps({"version": mds.VERSION, "shards": entries}, sort_keys=True).encode())
    return packed


def index(paths: Sequence[Path]) -> int:
    """Writes the index beside each tar shard that has none, or one of another state; gives how many were written.

    Raises:
        DataError: a shard is damaged.
    """
    made = 0
    for path in paths:
        text = tar.index_text(tar.members(path), path.stat().st_size)
        place = tar.index_file(path)
        if not place.is_file() or place.read_bytes() != text:
            write_whole(place, text)
            made += 1
    return made


def _groups(folder: Path) -> list[_Group]:
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: does not exist or is no folder; expected one with the files to pack")
    found: dict[str, _Group] = {}
    for path in sorted(walk(folder), key=lambda path: natural_order(path.relative_to(folder))):
        name = path.relative_to(folder).as_posix()
        found.setdefault(key_and_ending(name)[0], []).append(_File(name, path, path.stat().st_size))
    if not found:
        raise DataError(f"{printable(folder)}: holds no files to pack")
    return [sorted(group, key=lambda file: file.name) for group in found.values()]


def _uniform(groups: Sequence[_Group], folder: Path) -> None:
    wanted = _endings(groups[0])
    for group in groups:
        if _endings(group) != wanted:
            raise DataError(
                f"{printable(folder / group[0].name)}: its sample has the files {', '.join(_endings(group))}, and the first "
                f"one {', '.join(wanted)}; samples of MDS have one set of columns: complete them, or pack as tar"
            )


def _endings(group: _Group) -> list[str]:
    return [key_and_ending(file.name)[1] for file in group]


def _parts(groups: Sequence[_Group], limit: int) -> Iterator[list[_Group]]:
    part: list[_Group] = []
    held = 0
    for group in groups:
        size = sum(file.size for file in group)
        if part and held + size > limit:
            yield part
            part, held = [], 0
        part.append(group)
        held += size
    yield part


def _begin(out: Path, groups: Sequence[_Group], kind: Format, shard_bytes: int) -> None:
    found = hashlib.sha256()
    for file in (file for group in groups for file in group):
        found.update(f"{file.name} {file.size} {file.path.stat().st_mtime_ns}\n".encode(errors="surrogateescape"))
    plan = {"format": kind, "shard_bytes": shard_bytes, "files": found.hexdigest()[:16]}
    text = json.dumps(plan).encode()
    if (out / _PLAN).is_file():
        if (out / _PLAN).read_bytes() != text:
            raise ConfigurationError(
                f"{printable(out)} holds shards of other files, or of another format or size, and nothing is overwritten; give "
                "another folder, or remove it"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigurationError(f"{printable(out)} is not empty, and nothing is overwritten; give another folder")
    for left in out.glob(".*.tmp"):  # by a call that was killed
        left.unlink()
    write_whole(out / _PLAN, text)


def _tar(path: Path, part: Sequence[_Group]) -> bool:
    if path.is_file() and tar.index_file(path).is_file():
        return False
    temporary = path.with_name(f".{path.name}.tmp")
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in (file for group in part for file in group):
            header = tarfile.TarInfo(file.name)
            header.size = file.size
            with file.path.open("rb") as source:
                archive.addfile(header, source)
    temporary.replace(path)
    index([path])
    return True


def _mds(path: Path, part: Sequence[_Group], limit: int) -> tuple[bool, dict[str, object]]:
    endings = _endings(part[0])
    columns = sorted([*((ending, _ENCODINGS.get(ending.rpartition(".")[2], "bytes")) for ending in endings), (_KEY, "str")])
    names, encodings = [name for name, _ in columns], [encoding for _, encoding in columns]
    told = {
        "column_encodings": encodings,
        "column_names": names,
        "column_sizes": [None] * len(names),
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": limit,
        "version": mds.VERSION,
    }
    head = json.dumps(told, sort_keys=True).encode()
    keys = [key_and_ending(group[0].name)[0] for group in part]
    sizes = [
        4 * len(names) + len(os.fsencode(key)) + sum(file.size for file in group) for key, group in zip(keys, part, strict=True)
    ]
    offsets = list(accumulate(sizes, initial=4 + 4 * (len(part) + 1) + len(head)))
    if offsets[-1] >= 1 << 32:
        raise DataError(
            f"{printable(path)} would have {offsets[-1]} bytes, and offsets in MDS have 32 bits; give a smaller --size"
        )
    made = not (path.is_file() and path.stat().st_size == offsets[-1])
    if made:
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            file.write(struct.pack(f"<{1 + len(offsets)}I", len(part), *offsets) + head)
            for key, group in zip(keys, part, strict=True):
                values = {_KEY: os.fsencode(key)}
                values |= {ending: each.path.read_bytes() for ending, each in zip(endings, group, strict=True)}
                file.write(struct.pack(f"<{len(names)}I", *(len(values[name]) for name in names)))
                file.writelines(values[name] for name in names)
            if file.tell() != offsets[-1]:
                raise DataError(f"{printable(path)}: a file changed while it was packed; start again when nothing writes there")
        temporary.replace(path)
    raw = {"basename": path.name, "bytes": offsets[-1], "hashes": {}}
    return made, told | {"raw_data": raw, "samples": len(part), "zip_data": None}
