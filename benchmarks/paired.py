"""What side-by-side measurements share: workers in processes of their own, ratios, the machine."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


class Worker:
    """A process that measures what it is asked for: a number in, a number out."""

    def __init__(self, command: Sequence[str], cwd: Path | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=environment
        )

    def ask(self, number: int) -> float:
        """Sends a number and waits for the answer.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with code {self._process.wait()}")
        return float(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def in_turn(workers: Mapping[str, Worker], rounds: int, steps: int) -> dict[str, list[float]]:
    """What each worker answers to a number of steps, round by round, every other round in the opposite order."""
    times: dict[str, list[float]] = {case: [] for case in workers}
    for number in range(rounds):
        for case in list(workers) if number % 2 else reversed(workers):
            times[case].append(workers[case].ask(steps))
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(value, 3) for value in statistics.quantiles(values, n=4)]


def describe_machine() -> dict[str, str | int | None]:
    """Processor, cores, versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
