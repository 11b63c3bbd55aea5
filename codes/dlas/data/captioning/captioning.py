"""Captioning a folder into a list, in a way that can be stopped at any time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dlas.data.base import BadSample
from dlas.data.captioning.captioners import Captioner
from dlas.data.images.captions import read_list
from dlas.data.images.files import list_images, read_image, write_whole
from dlas.data.json_lines import add_lines, drop_torn_line
from dlas.errors import ConfigurationError, printable


@dataclass
class Captioned:
    """What became of a folder.

    Args:
        made: images captioned now.
        kept: images whose captions were there.
        bad_files: those that could not be read, and why.
    """

    made: int = 0
    kept: int = 0
    bad_files: dict[str, str] = field(default_factory=dict)


def caption_folder(
    folder: Path, output: Path, captioner: Captioner, batch_size: int, advance: Callable[[int], None] = lambda count: None
) -> Captioned:
    """Captions the images of a folder that a list does not name yet.

    The list (JSON Lines) appears, or is replaced, whole; until then what is done lies in `.<name>.partial` beside it, and the
    same call goes on from there. Captions that a list has are kept as they are.

    Args:
        folder: images; subfolders are searched.
        output: the list, `.jsonl`.
        captioner: captions a batch.
        batch_size: images at once.
        advance: is told how many more images are done.

    Raises:
        ConfigurationError: `output` does not end in `.jsonl`.
        DataError: the folder is empty or missing, or the list is no list of captions.
    """
    if output.suffix != ".jsonl":
        raise ConfigurationError(f"{printable(output)}: a list of captions is JSON Lines here; give a name that ends in .jsonl")
    root, images = folder.expanduser(), list_images(folder)
    partial = output.with_name(f".{output.name}.partial")
    before = output.read_bytes() if output.is_file() else b""
    known = set(read_list(output)) if before else set()
    result = Captioned()
    drop_torn_line(partial)
    done = set(_begun(partial))
    waiting = [path for path in (image.relative_to(root) for image in images) if path not in known and path not in done]
    result.kept = len(images) - len(waiting)
    advance(result.kept)
    output.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("ab") as file:
        for start in range(0, len(waiting), batch_size):
            some = waiting[start : start + batch_size]
            good, pixels = [], []
            for path in some:
                try:
                    pixels.append(read_image(root / path))
                    good.append(path)
                except BadSample as error:
                    result.bad_files[error.path] = error.reason
            captions = captioner(pixels, good) if good else []
            add_lines(file, [{"file": p.as_posix(), "caption": text} for p, text in zip(good, captions, strict=True)])
            result.made += len(good)
            advance(len(some))
    new = partial.read_bytes()
    if new:
        between = b"" if not before or before.endswith(b"\n") else b"\n"
        write_whole(output, before + between + new)
    partial.unlink()
    return result


def _begun(path: Path) -> list[Path]:
    """The files of a list that may be missing or empty."""
    if not path.is_file():
        return []
    return [Path(json.loads(line)["file"]) for line in path.read_text(encoding="utf-8").splitlines()]
