"""Which checkpoints stay."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from dlas.config.schema import CheckpointsConfig
from dlas.engine import checkpoint
from dlas.observe import disk
from dlas.observe.console import LOGGER


class Retention:
    """Removes what `checkpoints.keep_last`, `keep_every` and `keep_best` do not keep.

    Args:
        section: the settings.
        folder: the run's `checkpoints` folder.
        protected: checkpoints that stay in any case, for instance the one that the file names to start from.
    """

    def __init__(self, section: CheckpointsConfig, folder: Path, protected: frozenset[Path] = frozenset()) -> None:
        self.section = section
        self.folder = folder
        self.protected = frozenset(path.resolve() for path in protected)
        self._told: set[int | None] = set()

    def superfluous(self, step: int, best: int | None) -> list[Path]:
        """What may go once `step` is complete.

        Checkpoints of later steps are left alone: the run went on from before them because they are damaged.
        """
        last, every = self.section.keep_last, self.section.keep_every
        if last is None:
            return []
        there = [(number, path) for number, path in checkpoint.steps_in(self.folder).items() if number <= step]
        return [
            path
            for number, path in there[:-last]
            if not (every and number % every == 0) and number != best and path.resolve() not in self.protected
        ]

    def most_at_once(self, coming: Sequence[int]) -> int:
        """How many more checkpoints there will be than now, at most, when those of the steps `coming` are written."""
        last, every = self.section.keep_last, self.section.keep_every
        best = self.section.keep_best is not None
        if last is None:
            return len(coming) + best
        forever = sum(1 for step in coming if every and step % every == 0)
        passing = min(len(coming), last + 1) - len(checkpoint.steps_in(self.folder))  # those there make room for them
        return forever + max(0, passing) + best

    def apply(self, target: Path, best: int | None) -> None:
        """Points `best` to the best checkpoint and removes what may go, after reading the new one back.

        Args:
            target: the newest checkpoint, just published.
            best: step of the best one; None where no metric is asked for, or none was measured.

        Raises:
            OSError: the new checkpoint is damaged on the disk, or the pointer cannot be written. Nothing was removed.
        """
        pointer = self.folder / checkpoint.BEST
        if best is not None and (self.folder / str(best)).is_dir() and _text(pointer) != str(best):
            disk.replace_text(pointer, str(best))
        going = self.superfluous(int(target.name), best)
        if not going:
            return
        fault = checkpoint.find_fault(target)
        if fault is not None:
            raise OSError(errno.EIO, f"reads back otherwise than it was written: {fault}", str(target))
        try:
            for path in going:
                checkpoint.remove(path)
        except OSError as error:  # only room is lost; the next checkpoint tries again
            if error.errno not in self._told:
                LOGGER.warning("older checkpoints cannot be removed: %s", disk.reason(error))
            self._told.add(error.errno)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
