"""Lists of JSON, one value a line, that grow while a process works which may be killed at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from dlas.data.images.files import write_whole


def line_of(entry: Any) -> bytes:
    """A value as a line of UTF-8."""
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def add_lines(file: IO[bytes], entries: Iterable[Any]) -> None:
    """Appends values. They are on the disk when this returns."""
    file.writelines(map(line_of, entries))
    file.flush()
    os.fsync(file.fileno())


def drop_torn_line(path: Path) -> None:
    """Removes the half line that a killed process may have left; the file may be missing."""
    if path.is_file():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_whole(path, whole)
