"""What is found of each clip by slow functions, kept as it is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dlas.data.audio.files import read_sound
from dlas.data.corpus.functions import Clips
from dlas.data.json_lines import add_lines, drop_torn_line
from dlas.data.pool import map_in_processes
from dlas.errors import DataError, printable

Result = TypeVar("Result")


class Clip(NamedTuple):
    """A clip of the corpus.

    Args:
        path: its file.
        name: of the clip, in lists.
        checksum: of its content.
    """

    path: Path
    name: str
    checksum: int


def results_of(
    clips: Sequence[Clip],
    rate: int,
    function: Callable[[Clips, int], list[Result]],
    kept_in: Path,
    *,
    batch_size: int,
    workers: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Result]:
    """A function's result for each clip, as JSON holds it.

    Results are appended to a file as they come, and are not computed again. Clips are in the same batches whatever was done
    before, so that a function whose results depend on what a clip is batched with gives the same after a kill.

    Args:
        clips: all of them, in an order that does not change.
        rate: at which they are read, in Hz.
        function: if there are workers, it must be picklable.
        kept_in: the file; a function of other results needs another one.
        batch_size: clips at once.
        workers: processes; 0 works in this one.
        advance: is told how many more clips are done.

    Raises:
        DataError: a process died.
        BadSample: a clip cannot be read.
    """
    kept_in.parent.mkdir(parents=True, exist_ok=True)
    drop_torn_line(kept_in)
    lines = kept_in.read_text(encoding="utf-8").splitlines() if kept_in.is_file() else []
    known: dict[tuple[str, int], Any] = {(name, checksum): result for name, checksum, result in map(json.loads, lines)}
    batches = [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
    missing = [batch for batch in batches if not all(clip[1:] in known for clip in batch)]
    advance(len(clips) - sum(map(len, missing)))
    work = partial(_work, function=function, rate=rate)
    with kept_in.open("ab") as file:
        for batch, results in zip(missing, map_in_processes(work, missing, workers, _died), strict=True):
            add_lines(file, [[clip.name, clip.checksum, found] for clip, found in zip(batch, results, strict=True)])
            known |= {clip[1:]: found for clip, found in zip(batch, results, strict=True)}
            advance(len(batch))
    return [known[clip[1:]] for clip in clips]


def _work(batch: Sequence[Clip], *, function: Callable[[Clips, int], list[Result]], rate: int) -> list[Result]:
    return function([read_sound(clip.path, rate).numpy() for clip in batch], rate)


def _died(batch: Sequence[Clip]) -> list[Any]:
    raise DataError(
        f"{printable(batch[0].path)}: the process that worked on it and the {len(batch) - 1} clips behind it died, for want of "
        "memory maybe; give a smaller --batch-size or fewer workers. The same call goes on where it was"
    )
