"""Giving up what takes too long."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = 1.0  # seconds after which it is tried again: where it comes while memory is tidied up, Python drops it


class TookTooLongError(Exception):
    """Something was given up."""


class _Interruption(BaseException):
    """Comes in between, wherever the program is; no handler for errors holds it up."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends the block after so many seconds, where the system and the thread can be interrupted (not on Windows).

    Args:
        seconds: at most; infinity is no limit.

    Raises:
        TookTooLongError: it took longer.
    """
    if math.isinf(seconds) or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Interruption

    before = signal.signal(signal.SIGALRM, stop)
    timer = (0.0, 0.0)
    try:
        timer = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
        yield
    except _Interruption:
        raise TookTooLongError(f"not done after {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
