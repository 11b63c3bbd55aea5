"""Sharded checkpoints on failing disks: the same faults as those of whole ones, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from disks import Crash, Disk, crashes_at, fails_at
from dlas.engine import checkpoint
from dlas.engine.distributed import Ranks
from dlas.engine.sharded_checkpoint import Hooks, ShardCopy, publish
from test_checkpoint_faults import KINDS, assert_sound, disk_without_delay, snapshot, visible  # noqa: F401


def save(folder: Path, step: int) -> None:
    """Writes a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = ShardCopy(Ranks())
    copy.take(snapshot(step))
    publish(folder, copy, None, Hooks())


def operations_of_saving(folder: Path, patch: pytest.MonkeyPatch) -> int:
    save(folder, 5)
    with patch.context() as context:
        watched = Disk(context, folder)
        save(folder, 6)
    return len(watched.operations)


def test_a_failure_of_any_file_operation_publishes_nothing_by_halves(tmp_path, monkeypatch):
    count = operations_of_saving(tmp_path / "trial", monkeypatch)
    assert count > 15
    failed = 0
    for number in range(1, count + 1):
        folder = tmp_path / str(number)
        save(folder, 5)
        with monkeypatch.context() as context:
            Disk(context, folder, fails_at(number, KINDS[number % 4], 1000))
            try:
                save(folder, 6)
            except OSError:
                failed += 1
        assert_sound(folder, 5, 6)
        save(folder, 6)
        assert_sound(folder, 6)
        assert visible(folder) == ["5", "6", "latest"]
    assert failed > count - 3


def test_after_a_crash_between_any_two_operations_a_restart_finds_the_newest_complete_one(tmp_path, monkeypatch):
    found = []
    for number in range(1, operations_of_saving(tmp_path / "trial", monkeypatch) + 1):
        folder = tmp_path / str(number)
        save(folder, 5)
        with monkeypatch.context() as context:
            watched = Disk(context, folder, crashes_at(number))
            with pytest.raises(Crash):
                save(folder, 6)
        watched.lose_what_was_not_synced()
        checkpoint.tidy(folder)
        assert_sound(folder, 5, 6)
        newest = checkpoint.newest(folder)
        assert newest is not None
        found.append(int(newest.name))
        assert not [name for name in visible(folder) if name.startswith((".partial-", ".replaced-", ".removed-"))]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (5, 6)
