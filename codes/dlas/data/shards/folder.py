"""Shards as a folder: `shards/{0000..0099}.tar/0001.png` stands for the file `0001.png` in one of them.

A file is found by its name and read by its bytes alone, so any sample can be read in any order: the order of a run stays a
function of its seed, and does not depend on how files are spread over shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from dlas.data.shards import mds, tar
from dlas.data.shards.names import MDS, Root, files_of, refuse_packed, split, without_field
from dlas.errors import DataError, printable

T = TypeVar("T")

_EXAMPLES = 3
_CHANGED = "it is damaged, or another than at the start of the run: fetch it again, make its index anew, and begin again"


class Unreadable(DataError):  # noqa: N818  # it is the file that is unreadable
    """A file in a shard cannot be read; the message names the shard, the place, and what to do."""


class _Files(Protocol):
    """Files by name."""

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes | None: ...

    def size(self, name: str) -> int: ...

    def shard(self, name: str) -> Path: ...


class _Tars:
    """The files in tar shards. A name that several shards have is told apart by the shard's: `0003/0001.png`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        found = [(number, member) for number, path in enumerate(paths) for member in tar.members(path)]
        doubled = any(count > 1 for count in Counter(member.name for _, member in found).values())
        self._members = {
            f"{paths[number].stem}/{member.name}" if doubled else member.name: (number, member) for number, member in found
        }
        if len(self._members) < len(found):
            double = Counter((number, member.name) for number, member in found).most_common(1)[0][0]
            raise DataError(
                f"{printable(paths[double[0]])}: holds {printable(double[1])} more than once, or another shard of this name "
                "does; pack it anew with one name for each file"
            )

    def names(self) -> list[str]:
        return list(self._members)

    def size(self, name: str) -> int:
        return self._members[name][1].size

    def shard(self, name: str) -> Path:
        return self._paths[self._members[name][0]]

    def read(self, name: str) -> bytes | None:
        if name not in self._members:
            return None
        number, member = self._members[name]
        with self._paths[number].open("rb", buffering=0) as file:
            wrong = tar.fault(file, member)
            data = file.read(member.size) if wrong is None else b""
        if wrong is None and len(data) < member.size:
            wrong = f"byte {member.offset}: ends after {len(data)} of {member.size} bytes"
        if wrong is not None:
            raise Unreadable(f"shard {printable(self._paths[number])}, {wrong}; {_CHANGED}")
        return data


class _Folder(NamedTuple):
    files: _Files
    state: object
    names: dict[str, str]
    """Names in the shards by those that are shown."""


_open: dict[Root, _Folder] = {}


def is_shards(root: Path) -> bool:
    """Whether a path means shards that stand for a folder, be they there or not; a folder with an MDS index does, too."""
    refuse_packed(root)
    found = split(root)
    if found is None:
        return mds.is_index(root / MDS)
    return (
        not found[1]
        and not Path(found[0].shards).is_dir()
        and (not found[0].shards.endswith(MDS) or mds.is_index(Path(found[0].shards)))
    )


def is_inside(path: str | Path) -> bool:
    """Whether a path stands for a file in shards."""
    found = split(path)
    return found is not None and found[1] != "" and not Path(found[0].shards).is_dir()


def entries(root: Path) -> list[str]:
    """The names of the files, relative to the path that means the shards.

    Raises:
        DataError: a shard is missing or damaged; the place is named.
    """
    found = split(root)
    inside = "" if found else f"{MDS}/"
    where = found[0] if found else Root((root / MDS).as_posix(), "")
    files_of.cache_clear()  # at the start of a run the files are looked at anew
    return [inside + name for name in _folder(where, anew=True).names]


def content(path: str | Path) -> bytes | None:
    """The file that a path stands for; None if the shards have none.

    Raises:
        Unreadable: it is damaged.
        DataError: the shards are not there, or damaged.
    """
    return _of(path, lambda folder, name: _read(folder.files, name))


def _read(files: _Files, name: str) -> bytes | None:
    try:
        return files.read(name)
    except OSError as error:
        raise Unreadable(f"shard {printable(files.shard(name))}: cannot be read: {error.strerror}; check the disk") from error
    except Unreadable:
        raise
    except DataError as error:
        raise Unreadable(str(error)) from error


def file_size(path: Path) -> int:
    """Of a file in shards, or any other, in bytes; 0 if there is none."""
    packed = _of(path, lambda folder, name: folder.files.size(name))
    if packed is None:
        return path.stat().st_size if path.is_file() else 0
    return packed


def shard_of(path: str | Path) -> Path | None:
    """The shard that a file is in; None if there is none. With its size and time of change the file changes."""
    return _of(path, lambda folder, name: folder.files.shard(name))


def siblings(folder: Path) -> list[Path] | None:
    """The files beside each other in a folder, if it is one of shards."""
    found = split(folder)
    if found is None or Path(found[0].shards).is_dir():
        return None
    prefix = f"{found[1]}/" if found[1] else ""
    names = [name for name in _folder(found[0]).names if name.startswith(prefix) and "/" not in name[len(prefix) :]]
    return [folder / name[len(prefix) :] for name in names]


def _of(path: str | Path, get: Callable[[_Folder, str], T | None]) -> T | None:
    found = split(path)
    if found is None:
        return None
    folder = _folder(found[0])
    name = folder.names.get(found[1])
    return None if name is None else get(folder, name)


def _folder(root: Root, anew: bool = False) -> _Folder:
    known = _open.get(root)
    if known is not None and not anew:
        return known
    is_mds = root.shards.endswith(MDS)
    paths = [Path(root.shards)] if is_mds else files_of(root.shards)
    now = [(status.st_size, status.st_mtime_ns) for status in (path.stat() for path in paths)]
    if known is not None and known.state == now and not is_mds:  # the state of an index tells nothing of its shards
        return known
    files: _Files = mds.Samples(paths[0]) if is_mds else _Tars(paths)
    names = {shown: name for name in files.names() if (shown := without_field(name, root.field) if root.field else name)}
    if not names:
        kinds = Counter(name.rpartition("/")[2].partition(".")[2] for name in files.names()).most_common(_EXAMPLES)
        raise DataError(
            f"{printable(root.shards)}: holds no file {f'of the field {root.field!r}' if root.field else 'at all'}; found "
            f"{', '.join(f'{count} x {kind}' for kind, count in kinds) or 'nothing'}"
        )
    _open[root] = _Folder(files, now, names)
    return _open[root]
