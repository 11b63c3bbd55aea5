"""Where a run's time goes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch

from dlas.engine.progress import Progress
from dlas.engine.stage import STAGE, Stage

_OF_STEPS = frozenset(["forward", "backward", "optimizer"])
_BESIDE_TRAINING = frozenset(["start", "eval", "checkpoint", "diagnosis"])
"""Stages that rates leave out: how fast training is does not depend on how often one validates."""
_MOST_OPEN = 512


@dataclass
class Lap:
    """What happened since the last one.

    Args:
        seconds: by part: a stage, or `step/stage` for the stages of a step. Their sum is the time that went by.
        iterations: completed.
        samples: trained on, in all processes.
    """

    seconds: dict[str, float]
    iterations: int
    samples: int

    @property
    def total(self) -> float:
        """The time that went by."""
        return sum(self.seconds.values())

    @property
    def training(self) -> float:
        """Seconds without validation, checkpoints, and searches for the cause of bad updates."""
        return max(sum(each for part, each in self.seconds.items() if part not in _BESIDE_TRAINING), 1e-9)

    def share(self, part: str) -> float:
        """Of the training that a part takes; of the whole time for a part that is none of it."""
        return self.seconds.get(part, 0.0) / max(self.total if part in _BESIDE_TRAINING else self.training, 1e-9)

    def values(self) -> dict[str, float]:
        """Entries of a row of figures; `time/...` are seconds."""
        return {
            "iterations_per_second": self.iterations / self.training,
            "samples_per_second": self.samples / self.training,
            "data_wait_share": self.share("data"),
            **{f"time/{part}": each for part, each in self.seconds.items()},
        }


class Ledger:
    """Credits time to the stages of the loop, each until the next one begins: no time is lost or counted twice.

    A GPU works behind the loop, so that there a stage lasts from the end of the work given to the device before it to the end
    of its own, as events in the device's stream tell. They are read when they have come about; only `lap` waits for them. What
    the loop does while the device is busy takes no time in this account; what the device waits for does.

    Args:
        progress: of the run, at its beginning.
        device: of the run.
        stage: what the loop notes.
    """

    def __init__(self, progress: Progress, device: torch.device, stage: Stage = STAGE) -> None:
        self._stage = stage
        self._device = device
        self._earlier = progress.seconds
        self._began = self._since = time.perf_counter()
        self._part = "start"
        self._seconds: dict[str, float] = {}
        self._sitting: dict[str, float] = {}
        self._lap_step, self._lap_samples = progress.step, progress.samples
        self._events: deque[tuple[str, torch.cuda.Event]] | None = None
        if device.type == "cuda":
            self._events = deque([("start", self._event())])
        stage.listeners = (*stage.listeners, self.turn)

    def close(self) -> None:
        """The loop has ended; it is not listened to any more."""
        self.turn()
        self._stage.listeners = tuple(each for each in self._stage.listeners if each != self.turn)

    def turn(self) -> None:
        """A stage begins, and the one before it has ended."""
        stage = self._stage
        part = f"{stage.of}/{stage.name}" if stage.name in _OF_STEPS else stage.name
        if self._events is not None:
            self._events.append((part, self._event()))
            if len(self._events) > _MOST_OPEN:
                self._read_events()
            return
        now = time.perf_counter()
        self._credit(self._part, now - self._since)
        self._part, self._since = part, now

    def seconds(self) -> float:
        """Time of the whole run, earlier sittings included."""
        return self._earlier + time.perf_counter() - self._began

    def jump(self, progress: Progress) -> None:
        """The run went to another step; rates are counted from there."""
        self._settle()
        self._seconds = {}
        self._lap_step, self._lap_samples = progress.step, progress.samples

    def lap(self, progress: Progress) -> Lap:
        """What happened since the last call; waits for the device."""
        self._settle()
        lap = Lap(self._seconds, progress.step - self._lap_step, progress.samples - self._lap_samples)
        self._seconds = {}
        self._lap_step, self._lap_samples = progress.step, progress.samples
        return lap

    def sitting(self) -> Lap:
        """What happened since the beginning; waits for the device."""
        self._settle()
        return Lap(dict(self._sitting), 0, 0)

    def _settle(self) -> None:
        self.turn()  # the present stage goes on, in an entry of its own
        if self._events is not None:
            self._events[-1][1].synchronize()
            self._read_events()

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _read_events(self) -> None:
        assert self._events is not None
        while len(self._events) > 1 and self._events[1][1].query():
            part, began = self._events.popleft()
            self._credit(part, began.elapsed_time(self._events[0][1]) / 1000)

    def _credit(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds
        self._sitting[part] = self._sitting.get(part, 0.0) + seconds


def in_words(lap: Lap, least: float = 0.01) -> str:
    """The parts by size, those under `least` of the whole together: `gen/backward 51 %, gen/forward 34 %, ...`."""
    total = max(lap.total, 1e-9)
    large = sorted(((each / total, part) for part, each in lap.seconds.items() if each / total >= least), reverse=True)
    rest = 1 - sum(each for each, _ in large)
    words = [f"{part} {100 * each:.0f} %" for each, part in large]
    return ", ".join([*words, f"others {100 * rest:.0f} %"] if rest >= least else words)
