"""Ctrl-C, SIGTERM, SIGUSR1 (a batch system's warning) and the end of the terminal (SIGHUP) end a run at a step boundary.

The run is saved before it ends.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from dlas.engine.distributed import Ranks

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has not all of them


class Stopping(BaseException):
    """Raised where a request to stop need not wait for the step boundary: there is one already."""


class StopRequest:
    """Context manager that turns the first of these signals into a request; a second Ctrl-C stops at once.

    Attributes:
        signal: the first signal that came.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._interrupts = 0
        self._waiting = False

    def __enter__(self) -> StopRequest:
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is None or signal.getsignal(number) is signal.SIG_IGN:  # nohup
                continue
            try:
                self._before[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread: whoever started it there handles its signals
                break
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def ends_waiting(self) -> Iterator[None]:
        """Inside, a request raises `Stopping` wherever the program is: only for waiting for what is then thrown away."""
        self._waiting = True
        try:
            self.check()  # one that came just before
            yield
        finally:
            self._waiting = False

    def agreed(self, ranks: Ranks) -> bool:
        """Whether there is a request in any of the processes; from then on there is one in this one, too."""
        number = ranks.largest(self.signal or 0)
        if number and self.signal is None:
            self.signal = signal.Signals(number)
        return number != 0

    def check(self) -> None:
        """Raises `Stopping` if there is a request."""
        if self.signal is not None:
            self._waiting = False
            raise Stopping

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.signal is None:
            self.signal = signal.Signals(number)
        if self._waiting:
            self.check()
