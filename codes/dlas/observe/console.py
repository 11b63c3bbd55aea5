"""The terminal: log lines above a progress bar."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from dlas.errors import UserError
from dlas.observe import disk

LOGGER = logging.getLogger("dlas")
_FORMAT = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")


class _AboveBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # nobody reads any more (`| head`, a closed terminal): the run goes on, and its log file has the lines
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start_console(rank: int = 0) -> None:
    """Shows the program's messages on the terminal; of processes other than the first (`rank` 0), errors only."""
    if not any(isinstance(handler, _AboveBar) for handler in LOGGER.handlers):
        handler = _AboveBar()
        handler.setFormatter(_FORMAT)
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    LOGGER.propagate = False


class _ToFile(logging.FileHandler):
    """Lines that cannot be written wait in the file's buffer; the run goes on, and the terminal is told once."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name that logging calls
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            LOGGER.warning("the log file cannot be written: %s; training goes on without", disk.reason(error))


class LogFile:
    """Context manager: log lines also go to a file while it is open, and so does the error that ends it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.handler = _ToFile(self.path, encoding="utf-8", errors="backslashreplace")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(self.handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:  # shown on the terminal by whoever catches it
            details = None if isinstance(error, UserError) else (type(error), error, trace)
            self.handler.handle(LOGGER.makeRecord(LOGGER.name, logging.ERROR, "", 0, "%s", (str(error),), details))
        LOGGER.removeHandler(self.handler)
        with suppress(OSError):
            self.handler.close()


def to_log_files(text: str, error: BaseException) -> None:
    """Writes an error with its whole trace to the log file alone."""
    for handler in LOGGER.handlers:
        if isinstance(handler, _ToFile):
            details = (type(error), error, error.__traceback__)
            handler.handle(LOGGER.makeRecord(LOGGER.name, logging.DEBUG, "", 0, "%s", (text,), details))


def progress_bar(total: int, done: int, shown: bool = True) -> tqdm[None]:
    """A bar with it/s and ETA on a terminal; silent when the output goes to a file, or is not to be `shown`."""
    silent = not shown or not sys.stderr.isatty()
    return tqdm(total=total, initial=done, file=sys.stderr, disable=silent, dynamic_ncols=True, smoothing=0.1)


def compact(value: float) -> str:
    """A number in at most five significant digits."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def duration(seconds: float) -> str:
    """For instance `3 m 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} m"
    return f"{minutes} m {rest:02d} s" if minutes else f"{rest} s"
