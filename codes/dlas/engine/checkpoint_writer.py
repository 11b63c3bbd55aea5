"""Checkpoints are written beside the training, which waits only until its state is copied; a disk that fails is given time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from dlas.config.schema import CheckpointsConfig
from dlas.engine import checkpoint
from dlas.engine.host_copy import HostCopy, Snapshot
from dlas.engine.retention import Retention
from dlas.errors import CheckpointError, TrainingError
from dlas.observe import disk
from dlas.observe.console import LOGGER, duration
from dlas.observe.run_folder import RunFolder

_LONGEST_PAUSE = 60.0  # seconds between two tries


class CheckpointWriter:
    """Writes one checkpoint at a time.

    As a context manager it ends what it has begun: after success with all its patience, after an error with one last try, after
    a second Ctrl-C not at all (nothing is published by halves).

    Args:
        folder: the run's.
        section: the settings.
        flush_rows: brings the rows of metrics.jsonl to the disk; a checkpoint is published after that, so no restart lacks one.
        protected: checkpoints that are never removed.

    Attributes:
        newest: the newest complete checkpoint known to this process.
    """

    def __init__(
        self,
        folder: RunFolder,
        section: CheckpointsConfig,
        flush_rows: Callable[[], None] = lambda: None,
        protected: frozenset[Path] = frozenset(),
    ) -> None:
        self.folder = folder
        self.section = section
        self.newest: Path | None = None
        self._flush_rows = flush_rows
        self._retention = Retention(section, folder.checkpoints, protected)
        self._copy = self._make_copy()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failing = False
        self._hurry = threading.Event()

    def _make_copy(self) -> HostCopy:
        return HostCopy()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif isinstance(error, Exception):
            try:
                self.wait(patient=False)
            except Exception as second:  # the first error tells why the run ends
                LOGGER.warning("%s", second)

    def settle(self, best: int | None) -> None:
        """Does what a run that was killed still owed to its newest checkpoint: `best` names the best one, old ones go.

        Args:
            best: step of the best checkpoint, as for `save`.

        Raises:
            OSError: the folder cannot be changed.
        """
        if self.newest is not None:
            self._retention.apply(self.newest, best)

    def prepare(self, snapshot: Snapshot, coming: Sequence[int]) -> None:
        """Makes ready for snapshots like this one, beside the training, so that the first is copied as fast as the later ones.

        Args:
            snapshot: of which only the sizes count.
            coming: steps of the checkpoints to come; a warning says so if there is no room for them.
        """
        self._prepare_copy(snapshot)
        count = self._retention.most_at_once(coming)
        free = disk.free_bytes(self.folder.checkpoints)
        if free is not None and count * self._copy.size > free:
            LOGGER.warning(
                "the checkpoints to come take up to %s more (%d of %s), and %s are free in %s: make room, or keep fewer with "
                "checkpoints.keep_last",
                *(disk.amount(count * self._copy.size), count, disk.amount(self._copy.size), disk.amount(free)),
                self.folder.checkpoints,
            )

    def _prepare_copy(self, snapshot: Snapshot) -> None:
        if not self._copy.files:
            self._copy.prepare(snapshot)
            if self.section.background:
                self._start(self._copy.touch)

    def save(self, snapshot: Snapshot, best: int | None = None) -> None:
        """Copies the state, and writes it while the caller goes on. Waits for the checkpoint before this one.

        Args:
            snapshot: what to save.
            best: step of the best checkpoint, for `keep_best`.

        Raises:
            TrainingError: a weight of an earlier snapshot is not finite.
            CheckpointError: an earlier one could not be written.
        """
        self.wait()
        self._copy.take(snapshot)
        if self.section.background:
            self._start(lambda: self._write(best))
        else:
            self._write(best)

    def poll(self) -> None:
        """Raises the error that the writing ended with, if it did. Costs nothing."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self, patient: bool = True) -> None:
        """Returns when everything is written; raises what `poll` would.

        Args:
            patient: False gives a disk that fails one more try, and no time.
        """
        if self._thread is not None:
            if not patient:
                self._hurry.set()
            elif self._failing:
                LOGGER.warning("waiting for the checkpoint of step %d; Ctrl-C twice stops without it", self._copy.step)
            self._thread.join()
            self._thread = None
            self._hurry.clear()
        self.poll()

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised where the run can see it
                self._error = error

        # It ends with the process: a second Ctrl-C waits for no disk.
        self._thread = threading.Thread(target=run, name="checkpoints", daemon=True)
        self._thread.start()

    def _write(self, best: int | None) -> None:
        self._copy.wait()
        self._check_finite()
        try:
            self._write_with_patience(best)
        finally:
            self._failing = False

    def _check_finite(self) -> None:
        bad = self._copy.not_finite()
        if bad:
            raise self._spoilt(", ".join(bad))

    def _spoilt(self, networks: str) -> TrainingError:
        return TrainingError(
            f"weights of {networks} are not finite at step {self._copy.step}, which is not saved; the newest "
            f"checkpoint is {self.newest or 'not there yet'}. Lower the learning rate, set clip_grad_eps, or look for the "
            "operation with anomaly_detection: true"
        )

    def _write_with_patience(self, best: int | None) -> None:
        started, pause = time.monotonic(), self.section.retry_pause
        told: set[tuple[type[OSError], int | None]] = set()
        before, published = self.newest, None
        while True:
            try:
                if published is None:
                    published = self._publish(best)
                    self.newest = published
                    LOGGER.info("saved %s", published)
                self._retire(published, best)
                return
            except OSError as error:
                if published is not None and checkpoint.find_fault(published) is not None:
                    published, self.newest = None, before
                left = started + self.section.retry_for - time.monotonic()
                if self._gives_up(left <= 0 or self._hurry.is_set()):
                    raise self._given_up(error, time.monotonic() - started) from error
                if (type(error), error.errno) not in told:
                    told.add((type(error), error.errno))
                    self._report(error)
                self._failing = True
                self._hurry.wait(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _publish(self, best: int | None) -> Path:
        """Writes the checkpoint."""
        self.folder.check()
        return checkpoint.publish(self.folder.checkpoints, self._copy, self._before_publishing)

    def _retire(self, published: Path, best: int | None) -> None:
        """Removes what need not stay once a checkpoint is there."""
        self.folder.check()
        self._retention.apply(published, best)

    def _gives_up(self, wishes: bool) -> bool:
        """Whether a disk that fails is not tried again."""
        return wishes

    def _before_publishing(self) -> None:
        self._flush_rows()
        self.folder.check()  # written to a disk that was unmounted meanwhile?

    def _report(self, error: OSError) -> None:
        goes_on = "training goes on, and " if self.section.background else ""
        LOGGER.warning(
            "the checkpoint of step %d cannot be written: %s; %sit is tried again for up to %s",
            *(self._copy.step, disk.reason(error), goes_on, duration(self.section.retry_for)),
        )

    def _given_up(self, error: OSError, seconds: float) -> CheckpointError:
        tries = f" within {duration(seconds)}" if self._failing else ""
        return CheckpointError(
            f"the checkpoint of step {self._copy.step} could not be written{tries}: {disk.reason(error)}. The newest complete "
            f"one is {self.newest or 'not there yet'}; older ones are as they were. When the disk takes writes again, the same "
            "command goes on from there"
        )
