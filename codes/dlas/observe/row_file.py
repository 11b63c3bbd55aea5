"""Lines that are appended to a file in order, each once, whatever its disk does meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dlas.observe import disk
from dlas.observe.console import LOGGER


class RowFile:
    """Keeps lines in memory until they are on the disk.

    What was written since the last `sync` is written again if anything fails: a system may drop it then and not tell.

    Args:
        path: lines are appended to what is there; must be writable now.
        check: raises OSError where the folder is not the run's any more; the file is then not made anew.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._check = check
        self._lock = threading.Lock()
        self._lines: list[bytes] = []  # since the last sync
        self._written = 0  # of these
        self._told: set[int | None] = set()
        self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._opening = 0  # counts how often it was closed after an error
        self._safe = os.fstat(self._handle).st_size  # bytes that are on the disk

    def add(self, line: str) -> None:
        """Writes a line now, or later if that fails, which is told of once."""
        with self._lock:
            self._lines.append(line.encode() + b"\n")
            try:
                self._write()
            except OSError as error:
                if error.errno not in self._told:
                    LOGGER.warning(
                        "%s cannot be written: %s; its rows are kept in memory and written later", self.path, disk.reason(error)
                    )
                self._told.add(error.errno)

    def sync(self) -> None:
        """Returns when every line so far is on the disk.

        Raises:
            OSError: they are not; they stay in memory.
        """
        with self._lock:
            self._write()
            assert self._handle is not None
            handle, opening, count = os.dup(self._handle), self._opening, len(self._lines)
            size = os.fstat(handle).st_size
        try:
            os.fsync(handle)  # without the lock: a slow disk does not keep the run from adding lines
        except OSError:
            with self._lock:
                self._let_go()
            raise
        finally:
            os.close(handle)
        with self._lock:
            if opening == self._opening:  # else lines were written again meanwhile
                self._lines, self._written, self._safe = self._lines[count:], self._written - count, size
                self._told.clear()
                return
        self.sync()

    def close(self) -> None:
        """Closes the file; says so if lines are lost."""
        try:
            self.sync()
        except OSError as error:
            LOGGER.warning("%d rows of %s could not be written: %s", len(self._lines), self.path, disk.reason(error))
        self._let_go()

    def _write(self) -> None:
        try:
            self._check()
            if self._handle is None or not self._is_in_place():
                self._open_again()
            assert self._handle is not None
            for line in self._lines[self._written :]:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._handle, rest) :]
                self._written += 1
        except OSError:
            self._let_go()
            raise

    def _is_in_place(self) -> bool:
        assert self._handle is not None
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def _open_again(self) -> None:
        """Cuts off what is there of lines that are not known to be on the disk, half a line for instance."""
        self._let_go()
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if os.fstat(self._handle).st_size < self._safe:  # somebody took the file away
            self._safe = os.fstat(self._handle).st_size
        os.ftruncate(self._handle, self._safe)

    def _let_go(self) -> None:
        handle, self._handle, self._written = self._handle, None, 0
        self._opening += 1
        if handle is not None:
            with suppress(OSError):  # it is closed all the same
                os.close(handle)
