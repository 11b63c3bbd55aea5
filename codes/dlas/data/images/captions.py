"""Captions of image files: from files beside them, or from lists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlas.data.shards import folder as shards
from dlas.errors import DataError, printable

FILE_KEYS = ("file", "file_name", "path", "image")
CAPTION_KEYS = ("caption", "captions", "text")
_EXAMPLE = '{"file": "a/b.png", "caption": "..."}'

Captions = dict[Path, list[str]]
"""The captions of each file, by its path relative to the folder."""


def beside(image: Path) -> list[str]:
    """The captions in `photo.txt` (one a line) or `photo.json` beside `photo.png`; none if there is no such file.

    Raises:
        DataError: the file cannot be read, or has no captions in it.
    """
    lines = image.with_suffix(".txt")
    if _is_file(lines):
        found = [line.strip() for line in _text(lines).splitlines() if line.strip()]
    elif _is_file(tagged := image.with_suffix(".json")):
        found = _captions_of(_parsed(_text(tagged), str(tagged)), str(tagged))
        lines = tagged
    else:
        return []
    if not found:
        raise DataError(f"{printable(lines)}: holds no caption; write one a line, or remove the file")
    return found


def read_list(path: str | Path) -> Captions:
    """A list of captions: JSON Lines, JSON, or tab-separated values, as the file's ending says.

    ==========  =====================================================================================================
    ending      content
    ==========  =====================================================================================================
    ``.jsonl``  ``{"file": "a/b.png", "caption": "..."}`` a line; `file_name`, `path` and `image` mean `file`, and `text` and
                `captions` (a list) mean `caption`. Several lines for one file are several captions
    ``.json``   ``{"a/b.png": "..."}``, a list of captions in place of one if there are several
    ``.tsv``    file, tab, caption, a line; several lines for one file are several captions
    ==========  =====================================================================================================

    Raises:
        DataError: the file is missing, of another kind, or holds something else; the line is named.
    """
    path = Path(path).expanduser()
    readers = {".jsonl": _json_lines, ".json": _json, ".tsv": _tab_separated}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{printable(path)}: no list of captions is known by this ending; expected {', '.join(readers)}")
    found: Captions = {}
    for file, captions in reader(_text(path), printable(path)):
        found.setdefault(Path(file), []).extend(captions)
    if not found:
        raise DataError(f"{printable(path)}: this list has no captions")
    return found


def _json_lines(text: str, where: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place = f"{where}:{number}"
        entry = _parsed(line, place)
        files = [entry[key] for key in FILE_KEYS if key in entry] if isinstance(entry, Mapping) else []
        if len(files) != 1 or not isinstance(files[0], str):
            raise DataError(f"{place}: does not name one file; expected a line like {_EXAMPLE}")
        yield files[0], _captions_of(entry, place)


def _json(text: str, where: str) -> Iterator[tuple[str, list[str]]]:
    entries = _parsed(text, where)
    if not isinstance(entries, Mapping):
        raise DataError(f'{where}: expected a mapping like {{"a/b.png": "caption"}}, found {type(entries).__name__}')
    for file, captions in entries.items():
        yield file, _as_list(captions, f"{where}: '{file}'")


def _tab_separated(text: str, where: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        file, tab, caption = line.partition("\t")
        if not tab or not file.strip() or not caption.strip():
            raise DataError(f"{where}:{number}: expected a file, a tab, and a caption")
        yield file.strip(), [caption.strip()]


def _captions_of(entry: Any, where: str) -> list[str]:
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: expected an object like {_EXAMPLE}, found {type(entry).__name__}")
    given = [entry[key] for key in CAPTION_KEYS if key in entry]
    if len(given) != 1:
        raise DataError(
            f"{where}: expected one of the keys {', '.join(CAPTION_KEYS)}, found: {', '.join(map(str, entry)) or 'none'}"
        )
    return _as_list(given[0], where)


def _as_list(captions: Any, where: str) -> list[str]:
    given: Sequence[Any] = captions if isinstance(captions, list) else [captions]
    if not given or not all(isinstance(each, str) and each.strip() for each in given):
        raise DataError(f"{where}: expected a caption or a list of them, as text that is not empty")
    return [each.strip() for each in given]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: is no JSON: {error}") from error


def _is_file(path: Path) -> bool:
    return shards.shard_of(path) is not None or path.is_file()


def _text(path: Path) -> str:
    try:
        packed = shards.content(path)
        return path.read_text(encoding="utf-8") if packed is None else packed.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"{printable(path)}: captions cannot be read: {said}") from error
