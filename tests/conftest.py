"""For all tests."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import pytest


def pytest_configure() -> None:
    """Signals as in a terminal: a runner in the background (`nohup`, `&`) hands down that they are ignored.

    And no waiting for the disk: what tests write need not outlive a power failure. A handle that is not open is still an error.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.fsync = lambda handle: os.fstat(handle) and None


@pytest.fixture(scope="module", autouse=True)
def _little_to_look_through() -> None:
    """What is there when the tests of a file begin, torch above all, stays: collections of garbage pass it over."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, all tests of a file share one process, and with it what they make once.

    So do all tests of several processes, which would hold up each other's ranks side by side. These are the first files, and
    files with little to do are the last ones.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/distributed" if file.startswith("tests/distributed/") else file

    config.option.loadscopereorder = False  # by the number of tests
    return Scheduler(config, log)
