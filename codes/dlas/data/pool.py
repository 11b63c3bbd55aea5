"""A function over many inputs in worker processes: results in order, bounded memory, and a process that dies is no end."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2
import torch

Input = TypeVar("Input")
Output = TypeVar("Output")
DIED = "the process that read it died, for want of memory or in its decoder; cut it into parts or remove it"
"""What to say of a file that `died` is called for."""

_AHEAD = 4
_PULSE = 0.5  # seconds


def map_in_processes(
    function: Callable[[Input], Output], inputs: Iterable[Input], workers: int, died: Callable[[Input], Output]
) -> Iterator[Output]:
    """Results in the order of the inputs. Inputs are drawn as they are needed, a few for each worker ahead.

    Args:
        function: defined at the top of a module.
        inputs: its arguments.
        workers: number of processes; 0 computes in this one.
        died: gives the result for an input whose process died each time, as it does when memory runs out.
    """
    if workers == 0:
        yield from map(function, inputs)
        return
    remaining = iter(inputs)
    pending: deque[tuple[Input, Future[Output]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            while len(pending) < workers * _AHEAD and (drawn := list(itertools.islice(remaining, 1))):
                pending.append((drawn[0], pool.submit(function, drawn[0])))
            if not pending:
                return
            try:
                result = pending[0][1].result()
            except BrokenProcessPool:
                # Which of those in flight did it is not known: the first is tried alone, the others go to a new pool.
                pool.shutdown(cancel_futures=True)
                result = _alone(function, pending[0][0], died)
                pool = _pool(workers)
                again = [given for given, _ in pending]
                pending = deque((given, pool.submit(function, given)) for given in again[1:])
                yield result
                continue
            pending.popleft()
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(function: Callable[[Input], Output], given: Input, died: Callable[[Input], Output]) -> Output:
    with _pool(1) as pool:
        try:
            return pool.submit(function, given).result()
        except BrokenProcessPool:
            return died(given)


def _pool(workers: int) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        with _interrupt_afterwards():
            pool.submit(int).result()  # starts the processes
    except BaseException:
        pool.shutdown()  # left to the end of the program, it would complain
        raise
    return pool


@contextmanager
def _interrupt_afterwards() -> Iterator[None]:
    """Ctrl-C takes effect at the end: a KeyboardInterrupt inside of a fork is printed and lost."""
    if threading.current_thread() is not threading.main_thread():  # there it is never raised
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A killed program cannot end its workers; they would wait for it for ever."""
    while os.getppid() == parent:
        time.sleep(_PULSE)
    os._exit(1)
