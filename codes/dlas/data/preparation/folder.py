"""The folder of results: who may write there, which pictures it is made of, and what is made of all of them together."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.data.images import lmdb_folder
from dlas.data.images.files import list_images, write_whole
from dlas.data.images.lists import list_text
from dlas.data.images.pairs import unique_names
from dlas.data.pool import DIED, map_in_processes
from dlas.data.preparation import records
from dlas.data.preparation.picture import Outcome, Picture, prepare_picture
from dlas.data.preparation.plan import Plan
from dlas.data.preparation.records import NOTES, Record
from dlas.errors import ConfigurationError, DataError, printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_VERSION = 2
_EXAMPLES = 5


def pictures_of(folders: Sequence[Path], out: Path) -> list[Picture]:
    """The pictures below some folders, in natural order, each with a name of its own. Errors as of `sources_of`."""
    return [Picture(*each) for each in sources_of(folders, out, list_images)]


def sources_of(folders: Sequence[Path], out: Path, listing: Callable[[Path], list[Path]]) -> list[tuple[Path, str]]:
    """The files below some folders, each with a name of its own.

    Args:
        folders: where they are.
        out: folder of the results.
        listing: the files of a folder, in order.

    Raises:
        ConfigurationError: results would lie among the sources.
        DataError: a folder is missing or empty.
    """
    for folder in folders:
        if out.resolve().is_relative_to(folder.expanduser().resolve()):
            raise ConfigurationError(
                f"{printable(out)} lies in {printable(folder)}, so that the next call would take the results for sources; "
                "give another folder as --output"
            )
    found = dict.fromkeys(file.absolute() for folder in folders for file in listing(folder))
    return list(zip(found, unique_names(list(found)), strict=True))


def claim(out: Path, plan: DataclassInstance, folders: Sequence[Path], *, overwrite: bool) -> None:
    """Makes the folder of results, or takes up the one that an earlier call with the same options left.

    Args:
        out: the folder.
        plan: what is made of each source.
        folders: those of the sources.
        overwrite: remove first what earlier calls made there.

    Raises:
        ConfigurationError: it holds something else, or was made with other options.
    """
    note = out / NOTES / "plan.json"
    wanted = {"version": _VERSION, "folders": [str(folder.expanduser().resolve()) for folder in folders], **asdict(plan)}
    if note.is_file():
        made_with = _read_note(note)
        if overwrite:
            _clear(out)
        elif made_with != wanted:
            changed = [
                f"{key} was {made_with.get(key)} and is {value}" for key, value in wanted.items() if made_with.get(key) != value
            ]
            raise ConfigurationError(
                f"{printable(out)} was prepared with other options: {'; '.join(changed)}. Give another --output, or "
                "--overwrite to make it anew"
            )
    elif out.exists() and any(entry.name != NOTES for entry in out.iterdir()):
        raise ConfigurationError(
            f"{printable(out)} holds files that were not made by this command, and nothing is overwritten; give another "
            "--output"
        )
    write_whole(note, json.dumps(wanted, indent=1).encode())
    for temporary in [*out.rglob(".*.tmp")]:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _read_note(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(
            f"{printable(note)} cannot be read, so it is not known how this folder was made; remove the folder"
        )
    return found


def _clear(out: Path) -> None:
    for file in _record_files(out):
        record = records.read(file)
        if record is not None:
            records.remove(out, record.files)
        file.unlink()
    for path in (out / NOTES).glob("*.stamp"):
        shutil.rmtree(out / path.stem, ignore_errors=True)
        path.unlink()
    for folder in out.iterdir():
        if folder.is_dir():
            with suppress(OSError):  # not empty: there is something of somebody else
                folder.rmdir()


def _record_files(out: Path) -> list[Path]:
    return sorted((out / NOTES / "sources").glob("*.json"))


def refuse_lost_sources(out: Path, names: Iterable[str]) -> None:
    """Stops where there are results of other sources than these.

    Raises:
        DataError: sources that an earlier call prepared are no longer there.
    """
    known = {records.file_of(out, name) for name in names}
    lost = [file.stem for file in _record_files(out) if file not in known]
    if lost:
        raise DataError(
            f"{printable(out)} has results of {len(lost)} files that are no longer in the sources (or are called "
            f"otherwise now): {', '.join(map(printable, lost[:_EXAMPLES]))}; put them back, or give "
            "--overwrite to make all anew"
        )


@dataclass(frozen=True)
class Preparation:
    """Makes what is missing of some pictures.

    Args:
        pictures: all of them.
        out: folder of the results, claimed.
        plan: what to make of each.
        whole: compare what is there with its checksums.
    """

    pictures: Sequence[Picture]
    out: Path
    plan: Plan
    whole: bool = False

    def run(self, workers: int) -> Iterator[Outcome]:
        """What became of each picture, in their order. Neither that nor the results depend on the workers.

        Args:
            workers: processes; 0 works in this one.

        Raises:
            DataError: pictures that an earlier call prepared are no longer there.
        """
        refuse_lost_sources(self.out, (picture.name for picture in self.pictures))
        work = partial(prepare_picture, out=self.out, plan=self.plan, whole=self.whole)
        yield from map_in_processes(work, self.pictures, workers, _died)


def _died(picture: Picture) -> Outcome:
    return Outcome(None, "damaged", f"{printable(picture.source)}: {DIED}")


def list_of(made: Sequence[Record], folder: str) -> str:
    """The list of the pictures of one folder of results, as `meta_info` of the data sets takes it."""
    return list_text(
        (file.path.removeprefix(f"{folder}/"), file.height, file.width) for record in made for file in record.pictures(folder)
    )


def make_database(out: Path, made: Sequence[Record], folder: str) -> bool:
    """Writes the pictures of one folder of results into a database beside it, if that is not there already.

    Returns:
        Whether it was written.

    Raises:
        DataError: a picture's name has a space.
        MissingPackageError: the package lmdb is not installed.
    """
    root = out / f"{folder}{lmdb_folder.ENDING}"
    files = [file for record in made for file in record.pictures(folder)]
    stamp = out / NOTES / f"{root.name}.stamp"
    now = "\n".join(f"{file.path} {file.size} {file.checksum}" for file in files)
    identity = f"{len(files)} {zlib.crc32(now.encode()):08x}\n".encode()
    if root.is_dir() and stamp.is_file() and stamp.read_bytes() == identity:
        return False
    write_whole(stamp, b"begun\n")
    lmdb_folder.write(root, [(out / file.path, file.height, file.width) for file in files])
    write_whole(stamp, identity)
    return True
