"""Writes sharded checkpoints beside the training: every process its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from dlas.config import Config
from dlas.engine import sharded_checkpoint
from dlas.engine.checkpoint_writer import CheckpointWriter
from dlas.engine.distributed.ranks import Ranks
from dlas.engine.host_copy import Snapshot
from dlas.engine.sharded_checkpoint import Hooks, NotFiniteError, ShardCopy
from dlas.observe.run_folder import RunFolder


class ShardedWriter(CheckpointWriter):
    """As `CheckpointWriter`, in all processes: they write at the same time, and succeed or fail together.

    What `dcp.async_save` does is done by the thread of `CheckpointWriter`, which also tries again and does not hold up a
    process that is to end. The processes agree in a group of their own: the training agrees on other things meanwhile.

    Args:
        folder: the run's.
        config: of the run.
        ranks: the processes.
        flush_rows: as for `CheckpointWriter`.
        protected: as for `CheckpointWriter`.
    """

    _copy: ShardCopy

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        ranks: Ranks,
        flush_rows: Callable[[], None] = lambda: None,
        protected: frozenset[Path] = frozenset(),
    ) -> None:
        self.ranks = ranks
        self._group: Any = None
        if ranks.many:
            limit = timedelta(seconds=config.distributed.timeout)
            self._group = torch.distributed.new_group(backend="gloo", timeout=limit)
        super().__init__(folder, config.checkpoints, flush_rows, protected)

    def _make_copy(self) -> ShardCopy:
        return ShardCopy(self.ranks)

    def prepare(self, snapshot: Snapshot, coming: Sequence[int]) -> None:
        """See `CheckpointWriter`; the first process looks at the disk."""
        if self.ranks.main:
            super().prepare(snapshot, coming)
        else:
            self._prepare_copy(snapshot)

    def _check_finite(self) -> None:
        """It is done where all processes hear of it."""

    def _publish(self, best: int | None) -> Path:
        after = partial(self._retention.apply, best=best)
        hooks = Hooks(self.folder.check, self._before_publishing, after)
        try:
            return sharded_checkpoint.publish(self.folder.checkpoints, self._copy, self._group, hooks)
        except NotFiniteError as error:
            raise self._spoilt(str(error)) from error

    def _retire(self, published: Path, best: int | None) -> None:
        """The first process has done it."""

    def _gives_up(self, wishes: bool) -> bool:
        """As soon as one process wants to."""
        if self._group is None:
            return wishes
        flag = torch.tensor(int(wishes))
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flag)
