"""What the loop is doing now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

StageName = Literal[
    "start", "data", "transfer", "forward", "backward", "optimizer", "averages", "collective", "checkpoint", "eval", "logging",
    "diagnosis", "other",
]  # fmt: skip


class Stage:
    """A note that the loop changes as it goes on. There is one loop in a process, and one note.

    Another thread may read it (the watchdog); listeners are called at each change (the ledger of times, a profiler).

    Attributes:
        name: of the stage.
        of: the step of the file, or the picture, that it is about.
        count: grows with each change.
        listeners: called, after each change, by the loop itself.
    """

    __slots__ = ("count", "listeners", "name", "of")

    def __init__(self) -> None:
        self.name: StageName = "start"
        self.of = ""
        self.count = 0
        self.listeners: tuple[Callable[[], None], ...] = ()

    def enter(self, name: StageName, of: str = "") -> None:
        """The loop enters a stage, or takes the next piece of a long one."""
        self.name = name
        self.of = of
        self.count += 1
        for listener in self.listeners:
            listener()


STAGE = Stage()
