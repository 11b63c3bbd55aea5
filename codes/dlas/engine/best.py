"""Best figures of a run, and the step that is the best one."""

from __future__ import annotations

import math

from dlas.config import Config
from dlas.config.schema import RAW
from dlas.metrics import higher_is_better


class BestFigures:
    """Knows which of two figures is the better one.

    Args:
        config: the run's configuration.
    """

    def __init__(self, config: Config) -> None:
        self.section = config.checkpoints.keep_best
        self._maximised = {
            name: name.removeprefix(RAW) not in config.eval.values and higher_is_better(name.removeprefix(RAW))
            for name in config.eval.figures
        }
        self._watched: str | None = None
        if self.section is not None:
            if self.section.mode is not None:
                self._maximised[self.section.metric] = self.section.mode == "max"
            sets = [section.name or key for key, section in config.datasets.items() if key != "train"]
            name = self.section.set or next(iter(sets), None)
            self._watched = f"{name}/{self.section.metric}"

    def update(self, best: dict[str, dict[str, float]], set_name: str, metric: str, value: float, step: int) -> None:
        """Enters a figure into `best`, which maps `<set>/<metric>` to {"value", "step"}, if it is better than what is there."""
        known = best.get(f"{set_name}/{metric}")
        sign = 1 if self._maximised[metric] else -1
        if math.isfinite(value) and (known is None or sign * value > sign * known["value"]):
            best[f"{set_name}/{metric}"] = {"value": value, "step": step}

    def step(self, best: dict[str, dict[str, float]]) -> int | None:
        """The step that `checkpoints.keep_best` asks for; None without it, or before the first validation."""
        found = best.get(self._watched) if self._watched is not None else None
        return None if found is None else int(found["step"])
