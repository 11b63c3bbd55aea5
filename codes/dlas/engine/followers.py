"""What processes other than the first have in place of the things that write to the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from dlas.config import Config
from dlas.engine.checkpoint_writer import CheckpointWriter
from dlas.engine.host_copy import Snapshot
from dlas.observe.recorder import Recorder
from dlas.observe.run_folder import RunFolder


class FollowerFolder(RunFolder):
    """Knows what lies where and leaves it alone; only pictures of a shared validation are written."""

    def claim(self) -> None:
        """The first process does."""

    def set_aside(self) -> Path | None:
        """The first process does."""
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The first process holds the lock for all."""
        yield

    def describe(self, config: Config, source: Path | None, device: str) -> None:
        """The first process does."""

    def forget_after(self, step: int, validated: bool = True) -> None:
        """The first process does."""


class FollowerRecorder(Recorder):
    """Records nothing."""

    def __init__(self) -> None:
        self.folder = None

    def train(self, step: int, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        """The first process does."""

    def validation(self, step: int, samples: int, seconds: float, set_name: str, values: Mapping[str, float]) -> None:
        """The first process does."""

    def image(self, tag: str, image: Tensor, step: int) -> None:
        """The first process does, of its own pictures."""

    def text(self, tag: str, text: str) -> None:
        """The first process does."""

    def sync(self) -> None:
        """There is nothing to write."""

    def flush(self) -> None:
        """There is nothing to write."""

    def close(self) -> None:
        """There is nothing to close."""


class FollowerWriter(CheckpointWriter):
    """Takes part in making snapshots, and drops them."""

    def settle(self, best: int | None) -> None:
        """The first process does."""

    def prepare(self, snapshot: Snapshot, coming: Sequence[int]) -> None:
        """The first process does."""

    def save(self, snapshot: Snapshot, best: int | None = None) -> None:
        """The first process does."""
