"""Which images of a folder are taken: lists in text files, and how often."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlas.data.images.files import EXTENSIONS, list_images
from dlas.errors import ConfigurationError, DataError, printable

# `0001.png (480,480,3) 1`: size and level of compression are for other programs
_LINE = re.compile(r"(?P<name>.*?)(?:\s+\(\s*\d+(?:\s*,\s*\d+)*\s*\)(?:\s+\d+)?)?")
_BETWEEN = ", "  # `0001.png, 0001_lq.png`: a pair
_EXAMPLES = 5


def images_of(root: str | Path, meta_info: str | None) -> list[Path]:
    """The images below a folder, or those of them that a list names, in its order.

    Raises:
        DataError: the folder or the list is missing, empty, or names files that are not there.
    """
    if meta_info is None:
        return list_images(root)
    base = Path(root).expanduser()
    found = [base / name for name in read_list(meta_info)]
    known = set(list_images(base))
    missing = [path for path in found if path not in known]
    if missing:
        shown = ", ".join(printable(path.relative_to(base)) for path in missing[:_EXAMPLES])
        raise DataError(
            f"{printable(meta_info)} names {len(missing)} files that are not below {printable(base)}: {shown}"
            f"{', ...' if len(missing) > _EXAMPLES else ''}; expected paths relative to that folder, with extension"
        )
    return found


def read_list(path: str | Path) -> list[str]:
    """The names in a list: one a line, as they are or followed by `(height,width,channels)`; empty lines are passed over.

    Of lines that name a pair, the first names.

    Raises:
        DataError: the file is missing, no text, names nothing, or a name twice.
    """
    names = [name for name, _ in _entries(path)]
    if not names:
        raise DataError(f"{printable(path)}: this list names no image; expected one file name a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"{printable(path)}: this list names {printable(twice)} more than once; use `repeats` for whole folders"
        )
    return names


def list_text(images: Iterable[tuple[str, int, int]]) -> str:
    """A list as `read_list` reads it and BasicSR writes it: `0001.png (480,480,3)`.

    Args:
        images: name, height and width of each.
    """
    return "".join(f"{name} ({height},{width},3)\n" for name, height, width in images)


def partners_in(path: str | Path) -> dict[Path, Path]:
    """The partners that a list names, by the image they belong to: on lines like `0001.png, 0001_lq.png`.

    Raises:
        DataError: the file is missing or no text.
    """
    return {Path(name): Path(partner) for name, partner in _entries(path) if partner is not None}


def _entries(path: str | Path) -> list[tuple[str, str | None]]:
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"{printable(path)}: this list of images cannot be read: {said}; correct meta_info") from error
    found: list[tuple[str, str | None]] = []
    for line in lines:
        first, _, second = line.strip().partition(_BETWEEN)
        if all(Path(name).suffix.lower() in EXTENSIONS for name in (first, second)):
            found.append((first, second))
        elif (match := _LINE.fullmatch(line.strip())) and match["name"]:
            found.append((match["name"], None))
    return found


def one_for_each(roots: Sequence[str], values: Any, name: str) -> list[Any]:
    """An option that has one value for each folder, as a list of that length.

    Args:
        roots: the folders.
        values: the option: nothing, one value, or a list.
        name: of the option.

    Raises:
        ConfigurationError: there are not as many values as folders.
    """
    if values is None:
        return [None] * len(roots)
    given = values if isinstance(values, list) else [values]
    if len(given) != len(roots):
        raise ConfigurationError(f"dataroot_gt has {len(roots)} folders and {name} {len(given)} values; expected one for each")
    return given


def partner_names(name: Path, template: str) -> list[Path]:
    """Where the partner of a listed image may be: with its own extension first, then with others."""
    stem = template.replace("{}", name.stem)
    return [name.with_name(stem + ending) for ending in (name.suffix, *sorted(EXTENSIONS - {name.suffix}))]
