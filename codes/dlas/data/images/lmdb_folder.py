"""Images in an LMDB database as BasicSR writes it: a folder `x.lmdb` with `data.mdb`, and `meta_info.txt`, which names them.

To the rest of the program such a folder is one of files: `x.lmdb/0001.png` stands for the entry `0001`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dlas.errors import DataError, MissingPackageError, printable

ENDING = ".lmdb"
_PAGE = 4096
_AT_ONCE = 1000  # entries of a transaction, which lie in memory until its end


def is_inside(path: str | Path) -> bool:
    """Whether a path stands for an entry of a database."""
    return Path(path).parent.suffix == ENDING and (Path(path).parent / "data.mdb").is_file()


def entries(root: Path) -> list[str]:
    """The names in `meta_info.txt`, with extensions.

    Raises:
        DataError: a file of the database is missing or empty.
        MissingPackageError: the package lmdb is not installed.
    """
    package()
    listing = root / "meta_info.txt"
    for file in (root / "data.mdb", listing):
        if not file.is_file():
            raise DataError(f"{printable(file)}: does not exist; a folder that ends in .lmdb holds data.mdb and meta_info.txt")
    names = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{printable(listing)}: names no image; expected one a line, like `0001.png (480,480,3) 1`")
    return names


def content(path: Path) -> bytes | None:
    """The encoded image that a path stands for; None if the database has no such entry.

    Raises:
        DataError: the database cannot be opened.
    """
    database = _open(str(path.parent), os.getpid())
    with database.begin(write=False) as transaction:
        for key in (path.stem, path.name.partition(".")[0]):
            found: bytes | None = transaction.get(os.fsencode(key))
            if found is not None:
                return found
    return None


def write(root: Path, images: Sequence[tuple[Path, int, int]]) -> None:
    """Writes image files into a new database, complete or not at all.

    Args:
        root: folder of the database, which ends in `.lmdb`; what is there is replaced.
        images: file, height and width of each; the entry is called as the file without its extension.

    Raises:
        DataError: a name has a space, which ends it in `meta_info.txt`.
        MissingPackageError: the package lmdb is not installed.
    """
    lmdb = package()
    spaced = [path for path, _, _ in images if len(path.name.split()) > 1]
    if spaced:
        raise DataError(
            f"{printable(spaced[0])}: a database names its images one a line up to the first space; rename it and "
            f"{len(spaced) - 1} others"
        )
    temporary = root.with_name(f".{root.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # An entry takes whole pages, and a little of those that lead to it.
    room = sum(path.stat().st_size + 2 * _PAGE for path, _, _ in images) * 11 // 10 + (1 << 20)
    with lmdb.open(str(temporary), map_size=room // _PAGE * _PAGE) as database:
        for start in range(0, len(images), _AT_ONCE):
            with database.begin(write=True) as transaction:
                for path, _, _ in images[start : start + _AT_ONCE]:
                    transaction.put(os.fsencode(path.stem), path.read_bytes())
    (temporary / "lock.mdb").unlink(missing_ok=True)
    lines = [f"{path.name} ({height},{width},3) 1\n" for path, height, width in images]
    (temporary / "meta_info.txt").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(root, ignore_errors=True)
    temporary.replace(root)


@lru_cache(maxsize=16)
def _open(root: str, process: int) -> Any:  # one for each process: a database must not be used across a fork
    lmdb = package()
    try:
        return lmdb.open(root, readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise DataError(f"{printable(root)}: this database cannot be opened: {error}; copy it again") from error


def package() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise MissingPackageError("lmdb", "a folder that ends in .lmdb") from error
    return lmdb
