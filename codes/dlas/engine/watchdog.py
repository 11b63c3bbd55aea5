"""Notices that the loop hangs, and says where."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from dlas.config.schema import WatchdogConfig
from dlas.engine.stage import STAGE, Stage
from dlas.observe.console import LOGGER, duration

_LONGEST_POLL = 5.0


class Watchdog:
    """Context manager: while it is open, a thread looks whether the loop leaves its stages in time.

    A stage that lasts too long is reported in the run's log and on stderr, with the stack of every thread, again after twice
    the time, and so on. The report goes past the logging of the program, which may be what hangs. Should a library keep
    Python's lock meanwhile, so that no thread can run, faulthandler writes the stacks instead.

    Args:
        settings: `train.watchdog`.
        log: the run's log file.
        completed: gives the number of completed iterations.
        reading: gives what each process that reads data reads, or has read last.
        stage: what the loop notes.
    """

    def __init__(
        self,
        settings: WatchdogConfig,
        log: Path,
        completed: Callable[[], int],
        reading: Callable[[], list[str]],
        stage: Stage = STAGE,
    ) -> None:
        self.seconds = settings.seconds
        self.stops = settings.action == "stop"
        self.log = log
        self.completed = completed
        self.reading = reading
        self.stage = stage
        self.poll = min(self.seconds / 4, _LONGEST_POLL)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        if self.seconds:
            self._thread.join()

    def _watch(self) -> None:
        with self.log.open("ab") as file:
            try:
                self._look(file.fileno())
            finally:
                faulthandler.cancel_dump_traceback_later()

    def _look(self, log: int) -> None:
        count, since, due = self.stage.count, time.monotonic(), self.seconds
        while True:
            asleep = time.monotonic()
            # Set anew at each look, so it fires only when no look takes place.
            faulthandler.dump_traceback_later(self.seconds + 4 * self.poll + 1, repeat=True, file=log, exit=self.stops)
            if self._closed.wait(self.poll):
                return
            now = time.monotonic()
            if now - asleep > 4 * self.poll + 1:  # the whole process was stopped for a while, as by Ctrl-Z
                since += now - asleep - self.poll
            if self.stage.count != count:
                if due > self.seconds:
                    self._write(log, f"the loop goes on, after {duration(now - since)}")
                count, since, due = self.stage.count, now, self.seconds
            elif now - since >= due:
                self._write(log, self._report(now - since))
                due *= 2
                if self.stops:
                    self._end_process()

    def _report(self, lasted: float) -> str:
        of = f" of '{self.stage.of}'" if self.stage.of else ""
        shown = f"{lasted:.1f} s" if lasted < 60 else duration(lasted)
        lines = [
            f"the loop hangs: it has been in stage '{self.stage.name}'{of} for {shown}, after {self.completed()} completed "
            f"iterations (train.watchdog.seconds: {self.seconds:g})"
        ]
        with contextlib.suppress(Exception):  # a data set that cannot name its samples now
            lines += [f"reading, or read last: {words}" for words in self.reading()]
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        main = threading.main_thread().ident
        for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != main):
            if ident != self._thread.ident:
                lines += [f"thread {names.get(ident, ident)}:", "".join(traceback.format_stack(frame)).rstrip()]
        if self.stops:
            lines.append(
                "train.watchdog.action is 'stop': the process ends; the same command goes on from the newest checkpoint"
            )
        return "\n".join(lines)

    def _write(self, log: int, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        for handle, words in ((log, f"{stamp} ERROR {text}\n"), (2, f"{text}\n")):
            with contextlib.suppress(OSError):
                os.write(handle, words.encode())

    def _end_process(self) -> None:
        flushing = threading.Thread(target=_flush, daemon=True)
        flushing.start()
        flushing.join(5)  # what hangs may hold the lock of a handler
        for child in multiprocessing.active_children():  # data workers that hang would outlive this process
            child.kill()
        os._exit(1)


def _flush() -> None:
    for handler in [*LOGGER.handlers, *logging.getLogger().handlers]:
        handler.flush()
