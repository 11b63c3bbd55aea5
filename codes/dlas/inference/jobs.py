"""Which files become which."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlas.data.images.files import EXTENSIONS, list_images
from dlas.errors import ConfigurationError, DataError, printable
from dlas.inference.pictures import WRITABLE

VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"})


@dataclass(frozen=True)
class Job:
    """A file to read and the one to write."""

    source: Path
    target: Path


def plan_jobs(inputs: Sequence[str], output: Path, ending: str | None, suffix: str) -> list[Job]:
    """Files, folders and patterns to pairs of files. Folders keep what is below them.

    Args:
        inputs: paths; patterns (`*`, `**`) are expanded where no such file exists.
        output: a folder; or, for one file, the file to write, if it has the ending of one.
        ending: of the pictures to write (".png"); None keeps each file's own where that can be written, else it is ".png".
        suffix: put behind each name.

    Raises:
        DataError: an input does not exist, or holds nothing.
        ConfigurationError: two files would become one, or one would be written over its source.
    """
    found: list[tuple[Path, Path]] = []  # a file, and its place below the output
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            found += [(file, file.relative_to(path)) for file in list_images(path)]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - of any root
            files = [match for match in matches if match.is_file() and match.suffix.lower() in EXTENSIONS | VIDEOS]
            if not files:
                raise DataError(f"{printable(text)}: no such file or folder, and no pattern that images fit")
            found += [(file, Path(file.name)) for file in files]
    single = len(found) == 1 and Path(inputs[0]).expanduser().is_file() and len(inputs) == 1
    if single and not output.is_dir() and output.suffix.lower() in WRITABLE | VIDEOS:
        jobs = [Job(found[0][0], output)]
    else:
        jobs = [Job(file, output / _named(place, ending, suffix)) for file, place in found]
    taken: dict[Path, Path] = {}
    for job in jobs:
        other = taken.setdefault(job.target, job.source)
        if other != job.source:
            raise ConfigurationError(
                f"{printable(other)} and {printable(job.source)} would both become {printable(job.target)}; name them one "
                "after the other, with another --suffix, or name the folder that holds both"
            )
        if job.target.exists() and job.target.samefile(job.source):
            raise ConfigurationError(
                f"{printable(job.target)} would be written over itself; take another folder, or a --suffix"
            )
    return jobs


def _named(place: Path, ending: str | None, suffix: str) -> Path:
    own = place.suffix.lower()
    if own in VIDEOS:
        return place.with_name(f"{place.stem}{suffix}{place.suffix}")
    if ending is None:
        ending = place.suffix if own in WRITABLE else ".png"
    return place.with_name(f"{place.stem}{suffix}{ending}")
