"""Which shards a path means, and which file in them."""

from __future__ import annotations

import glob
import itertools
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dlas.errors import DataError, printable

TAR = ".tar"
MDS = "index.json"

_ROOT = re.compile(
    r"(?P<shards>.*?(?:\.tar|(?:^|(?<=/))index\.json))(?::(?P<field>[\w-]+(?:\.[\w-]+)*))?(?:/(?P<name>.*))?", re.DOTALL
)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_PACKED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$")


class Root(NamedTuple):
    """A set of shards that stands for a folder.

    Args:
        shards: the path before the field, with braces and wildcards.
        field: what a file's name has between its key and its ending: `gt` for `0001.gt.png`. Empty: names are as they are.
    """

    shards: str
    field: str


def split(path: str | Path) -> tuple[Root, str] | None:
    """The shards that a path leads into, and the rest of it, which is empty for the shards themselves.

    Only the text is looked at: a folder may be called `x.tar`, too.
    """
    found = _ROOT.fullmatch(_text(path))
    return (Root(found["shards"], found["field"] or ""), found["name"] or "") if found else None


def _text(path: str | Path) -> str:
    return path if isinstance(path, str) else path.as_posix()


@lru_cache(maxsize=256)
def files_of(pattern: str) -> tuple[Path, ...]:
    """The files that `shards/{0000..0099}.tar`, `a/{train,val}.tar` or `shards/*.tar` name, in this order.

    Raises:
        DataError: one is missing, or there is none.
    """
    paths = []
    for text in _expanded(pattern):
        wild = any(character in text for character in "*?[")
        matches = sorted(glob.glob(text)) if wild else [text]  # noqa: PTH207  # the pattern may be absolute
        if not matches:
            raise DataError(f"{printable(text)}: no file is called so; expected shards that end in {TAR}")
        paths += [Path(each) for each in matches]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{printable(missing[0])}: this shard does not exist ({len(missing)} of {len(paths)} of {printable(pattern)} do "
            "not); fetch it, or correct the range"
        )
    return tuple(paths)


def _expanded(pattern: str) -> list[str]:
    pieces = _BRACES.split(pattern)
    choices = [_choices(piece, pattern) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    return ["".join(each) for each in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
    limits = _RANGE.fullmatch(inside)
    if not limits:
        if "," not in inside:
            raise DataError(f"{printable(pattern)}: braces hold a range like {{0000..0099}} or a list like {{a,b}}")
        return inside.split(",")
    first, last = limits.groups()
    if int(last) < int(first):
        raise DataError(f"{printable(pattern)}: the range {{{inside}}} ends before it begins")
    width = max(len(each) if each.startswith("0") else 0 for each in (first, last))
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def key_and_ending(name: str) -> tuple[str, str]:
    """A name in parts as webdataset has them: the key up to the first dot after the last slash, and what follows the dot."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending


def without_field(name: str, field: str) -> str | None:
    """`0001.png` for `0001.gt.png` and the field `gt`; None for a file of another field."""
    key, ending = key_and_ending(name)
    return f"{key}.{ending[len(field) + 1 :]}" if ending.startswith(f"{field}.") else None


def refuse_packed(path: Path) -> None:
    """Refuses a tar file that is compressed as a whole.

    Raises:
        DataError: it is one.
    """
    if _PACKED.search(path.name) and path.is_file():
        raise DataError(
            f"{printable(path)}: this shard is compressed as a whole, so no file in it can be read by itself; unpack it to "
            f"{printable(_PACKED.sub(TAR, path.name))}"
        )
