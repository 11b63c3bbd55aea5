"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What a run has done so far; with weights and optimisers, all that a restart needs.

    Args:
        step: completed iterations.
        samples: training samples taken.
        seconds: time spent in this and earlier sittings.
        best: best mean of each validation metric, by set and name, with its step.
        rollbacks: how often the run was rolled back to a checkpoint after a bad update.
        validated: step of the latest validation; a request to stop puts one off that is due.
        bad_files: unusable files that were skipped, and why.
        resume_state: `path.resume_state` that the run went on from, so that the same command does not go back to it again.
        micro_batch_size: most samples of a micro-batch that fitted into memory, where `micro_batch_size: auto` had to find it.
        work: floating-point operations of a sample, as they were counted in a compiled run. A sitting that knows them compiles
            its first iteration, too, and so gives the numbers of a run that was never stopped.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    rollbacks: int = 0
    validated: int = 0
    bad_files: dict[str, str] = field(default_factory=dict)
    resume_state: str | None = None
    micro_batch_size: int | None = None
    work: dict[str, Any] = field(default_factory=dict)
