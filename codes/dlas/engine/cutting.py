"""How batches are cut into micro-batches, and what is done when one does not fit into memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlas.config.schema import TrainConfig
from dlas.engine.microbatch import MicroBatch, split_batch
from dlas.engine.out_of_memory import StepOutOfMemoryError
from dlas.errors import TrainingError
from dlas.observe.console import LOGGER


@dataclass
class Cutting:
    """How batches are cut.

    Args:
        parts: micro-batches per batch, at least.
        limit: most samples of a micro-batch; None: whatever `parts` gives.
        automatic: the limit is halved whenever memory runs out.
    """

    parts: int = 1
    limit: int | None = None
    automatic: bool = False

    @staticmethod
    def of(train: TrainConfig) -> Cutting:
        """What the section says."""
        size = train.micro_batch_size
        return Cutting(train.mega_batch_factor, size if isinstance(size, int) else None, size == "auto")

    @property
    def found(self) -> int | None:
        """The limit that shortages of memory have led to."""
        return self.limit if self.automatic else None

    def resume(self, found: int | None) -> None:
        """Goes on with the limit that an earlier sitting found; a size in the file takes its place."""
        if self.automatic and found is not None:
            self.limit = found
            LOGGER.info(
                "micro-batches of at most %d samples, as found before the restart (train.micro_batch_size: auto)", found
            )

    def count(self, samples: int) -> int:
        """The number of micro-batches of a batch, each of one sample at least."""
        return min(samples, self.parts if self.limit is None else max(self.parts, -(-samples // self.limit)))

    def size(self, samples: int) -> int:
        """The number of samples in the largest micro-batch of a batch."""
        return -(-samples // self.count(samples))

    def cut(self, batch: dict[str, Any], positions: list[int]) -> list[MicroBatch]:
        """The micro-batches of a batch."""
        return split_batch(batch, positions, self.count(len(positions)))

    def halve(self, parts: list[MicroBatch], shortage: StepOutOfMemoryError, completed: int) -> list[MicroBatch]:
        """Halves the limit, for good, and cuts micro-batches that are larger, with all that steps have written.

        Raises:
            TrainingError: they have one sample each.
        """
        largest = max(len(part.positions) for part in parts)
        if largest == 1:
            raise TrainingError(
                f"{shortage}. This was with one sample at a time (train.micro_batch_size: auto): make the samples smaller, set "
                "checkpointing_enabled: true (for networks that offer it) or precision: bf16 or fp16, or take a smaller network"
            )
        self.limit = -(-largest // 2)
        LOGGER.warning(
            "iteration %d: %s. This batch again, and all others, in micro-batches of at most %d sample%s (%d before)",
            completed,
            shortage,
            self.limit,
            "s" * (self.limit > 1),
            largest,
        )
        return [piece for part in parts for piece in part.cut(2 if len(part.positions) > self.limit else 1)]
