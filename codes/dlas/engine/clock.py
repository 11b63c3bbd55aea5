"""Where a run's time goes."""

from __future__ import annotations

import time

from dlas.engine.progress import Progress


class Clock:
    """Where the time goes: waiting for data, working, or neither (validation and saving count as paused)."""

    def __init__(self, progress: Progress) -> None:
        self._earlier = progress.seconds
        self._start = time.perf_counter()
        self._mark = self._start
        self._wait = 0.0
        self._work = 0.0
        self._lap_step, self._lap_samples = progress.step, progress.samples

    def waiting(self) -> None:
        now = time.perf_counter()
        self._work += now - self._mark
        self._mark = now

    def working(self) -> None:
        now = time.perf_counter()
        self._wait += now - self._mark
        self._mark = now

    def pause(self) -> None:
        self.waiting()

    def resume(self) -> None:
        self._mark = time.perf_counter()

    def seconds(self) -> float:
        """Time of the whole run, earlier sittings included."""
        return self._earlier + time.perf_counter() - self._start

    def jump(self, progress: Progress) -> None:
        """The run went to another step; rates are counted from there."""
        self.pause()
        self._wait = self._work = 0.0
        self._lap_step, self._lap_samples = progress.step, progress.samples

    def lap(self, progress: Progress) -> dict[str, float]:
        """Rates since the last call."""
        self.pause()
        busy = max(self._wait + self._work, 1e-9)
        values = {
            "iterations_per_second": (progress.step - self._lap_step) / busy,
            "samples_per_second": (progress.samples - self._lap_samples) / busy,
            "data_wait_share": self._wait / busy,
        }
        self._wait = self._work = 0.0
        self._lap_step, self._lap_samples = progress.step, progress.samples
        return values
