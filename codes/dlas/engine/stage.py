"""What the loop is doing now, for the watchdog."""

from __future__ import annotations

from typing import Literal

StageName = Literal[
    "start", "data", "transfer", "forward", "backward", "optimizer", "collective", "checkpoint", "eval", "logging", "diagnosis"
]


class Stage:
    """A note that the loop changes as it goes on and another thread reads. There is one loop in a process, and one note.

    Attributes:
        name: of the stage.
        of: the step of the file, or the picture, that it is about.
        count: grows with each change.
    """

    __slots__ = ("count", "name", "of")

    def __init__(self) -> None:
        self.name: StageName = "start"
        self.of = ""
        self.count = 0

    def enter(self, name: StageName, of: str = "") -> None:
        """The loop enters a stage, or takes the next piece of a long one."""
        self.name = name
        self.of = of
        self.count += 1


STAGE = Stage()
