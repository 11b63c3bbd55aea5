"""A profile of a few iterations: which operations take the time and the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dlas.config.schema import ProfileConfig
from dlas.engine.stage import STAGE
from dlas.observe.console import LOGGER

_ROWS = 10
_MOST_ALLOCATIONS = 100_000


class RunProfiler:
    """Profiles iterations of a sitting; costs nothing before and after them.

    Files, in <run>/profile:
        trace_<step>.json.gz: for chrome://tracing or https://ui.perfetto.dev, with the stages of the loop.
        operations_<step>.txt: the dearest operations, by time and by memory.
        memory_<step>.pickle: on CUDA, every allocation with its stack, for https://pytorch.org/memory_viz.

    Args:
        settings: the section; without one nothing is ever profiled.
        folder: of the run.
        device: of the run.
        rank: of the process; others than 0 have it in the names of their files.
    """

    def __init__(self, settings: ProfileConfig | None, folder: Path, device: torch.device, rank: int = 0) -> None:
        self.settings = settings
        self._suffix = f"_rank{rank}" if rank else ""
        self.folder = folder / "profile"
        self.cuda = device.type == "cuda"
        self._seen = 0
        self._profile: Any = None
        self._range: Any = None

    def before_iteration(self) -> None:
        """Begins, if it is time."""
        if self.settings is not None and self._seen == self.settings.after:
            self._begin(self.settings)
        self._seen += 1

    def after_iteration(self, completed: int) -> None:
        """Ends and writes, if it is time.

        Args:
            completed: number of completed iterations, for the names of the files.
        """
        settings = self.settings
        if self._profile is not None and settings is not None and self._seen == settings.after + settings.steps:
            self._end()
            self._write(settings, completed)
            self._profile = None

    def close(self) -> None:
        """The run ends; a profile that is not complete is left out."""
        if self._profile is not None:
            self._end()
            self._profile = None
            LOGGER.warning("the run ended within the iterations that were to be profiled; no profile is written")

    def _begin(self, settings: ProfileConfig) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        if self.cuda and settings.memory:
            torch.cuda.memory._record_memory_history(max_entries=_MOST_ALLOCATIONS)
        self._profile = profile(activities=activities, profile_memory=settings.memory, record_shapes=settings.shapes)
        self._profile.start()
        STAGE.listeners = (*STAGE.listeners, self._turn)
        self._turn()

    def _turn(self) -> None:
        """A stage of the loop begins: a range of the trace."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._range = record_function(" ".join(filter(None, ("stage", STAGE.of, STAGE.name))))
        self._range.__enter__()

    def _end(self) -> None:
        STAGE.listeners = tuple(each for each in STAGE.listeners if each != self._turn)
        self._range.__exit__(None, None, None)
        self._range = None
        if self.cuda:
            torch.cuda.synchronize()
        self._profile.stop()

    def _write(self, settings: ProfileConfig, completed: int) -> None:
        name = f"{completed}{self._suffix}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.folder / f"trace_{name}.json.gz"))
        rows = self._profile.key_averages(group_by_input_shape=settings.shapes)
        operations = [row for row in rows if not row.key.startswith("stage ")]
        by = "device" if self.cuda else "cpu"
        table = _table(operations, f"self_{by}_time_total", 1e-3, "ms")
        text = f"{settings.steps} iterations up to step {completed}: the dearest operations, without what they call\n{table}"
        if settings.memory:
            memory = _table(operations, f"self_{by}_memory_usage", 2**-20, "MB")
            text += f"\n\nmemory that they left allocated, in sum\n{memory}"
        (self.folder / f"operations_{name}.txt").write_text(text + "\n", encoding="utf-8")
        if self.cuda and settings.memory:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"memory_{name}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        LOGGER.info("profile in %s\n%s", self.folder, text)


def _table(rows: list[Any], attribute: str, factor: float, unit: str) -> str:
    """The largest ones, with their share of the whole."""
    total = sum(max(getattr(row, attribute), 0) for row in rows) or 1
    largest = sorted(rows, key=lambda row: getattr(row, attribute), reverse=True)[:_ROWS]
    lines = [f"{unit:>10}  share   calls  operation"]
    for row in largest:
        value = getattr(row, attribute)
        shapes = f"  {row.input_shapes}" if row.input_shapes else ""
        lines.append(f"{value * factor:10.2f}  {100 * value / total:4.1f} %  {row.count:6d}  {row.key}{shapes}")
    return "\n".join(lines)
