"""How fast a run is, what its time goes into, and what would make it faster."""

from __future__ import annotations

import torch

from dlas.config import Config
from dlas.engine.advice import Advisor
from dlas.engine.device import peak_memory_mb
from dlas.engine.flops import Work, peak_rate
from dlas.engine.ledger import Ledger, in_words
from dlas.engine.precision import DTYPES, Precision
from dlas.engine.progress import Progress
from dlas.observe.console import LOGGER


class Throughput:
    """Figures of speed for the rows of a run.

    Args:
        config: of the run.
        progress: of the run, at its beginning.
        device: of the run.
        precision: in which it computes.
        work: the arithmetic of its steps, where it is counted.
    """

    def __init__(
        self, config: Config, progress: Progress, device: torch.device, precision: Precision, work: Work | None
    ) -> None:
        self.ledger = Ledger(progress, device)
        self._device = device
        self._work = work
        self._rate = (device, DTYPES[precision.name], config.tf32)
        self._advisor = Advisor(config, device)
        self._retries = 0

    def values(self, progress: Progress) -> dict[str, float]:
        """Entries of a row, for the time since the last one. Logs a line of advice where there is something new to say."""
        lap = self.ledger.lap(progress)
        values = lap.values()
        if self._work is not None:
            rate = self._work.take() / lap.training / 1e12
            values |= {"tflops": rate, "mfu": rate / peak_rate(*self._rate)}
        values["peak_memory_mb"] = peak_memory_mb(self._device)
        retries = self._new_retries()
        if self._device.type == "cuda":
            values["allocator_retries"] = float(retries)
        advice = self._advisor.advise(lap, retries)
        if advice is not None:
            LOGGER.info("speed: %s", advice)
        return values

    def close(self) -> None:
        """Listens to the loop no longer."""
        self.ledger.close()

    def report(self) -> None:
        """Logs where the time of the whole sitting went."""
        LOGGER.info("time: %s", in_words(self.ledger.sitting()))

    def _new_retries(self) -> int:
        if self._device.type != "cuda":
            return 0
        retries = int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))
        new, self._retries = retries - self._retries, retries
        return new
