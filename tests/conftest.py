"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Signals as in a terminal: a runner in the background (`nohup`, `&`) hands down that they are ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
