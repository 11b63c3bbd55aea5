"""Sharded checkpoints on failing disks: the same faults as those of whole ones, in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from disks import Crash, Disk, crashes_at, fails_at
from dlas.engine import checkpoint
from dlas.engine.distributed import Ranks
from dlas.engine.host_copy import Snapshot
from dlas.engine.sharded_checkpoint import Hooks, ShardCopy, publish
from dlas.engine.sharded_writer import ShardedWriter
from dlas.observe import disk
from dlas.observe.run_folder import RunFolder
from runs import configure
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


def test_training_goes_on_while_parts_are_written_and_the_next_checkpoint_waits(tmp_path, monkeypatch):
    config = configure(tmp_path, toys.PSNR, "checkpoints.format=sharded")
    (tmp_path / "checkpoints").mkdir()
    writing, may_go_on = threading.Event(), threading.Event()
    real = disk.write_file

    def slow(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
        writing.set()
        assert may_go_on.wait(20)
        return real(path, chunks)

    monkeypatch.setattr(disk, "write_file", slow)
    with ShardedWriter(RunFolder(tmp_path), config, Ranks()) as writer:
        own = snapshot(5)
        writer.save(own)
        assert writing.wait(20)
        own.networks["net"]["a"].zero_()  # the copy is written, whatever training makes of the original
        assert checkpoint.newest(tmp_path / "checkpoints") is None
        second = threading.Thread(target=writer.save, args=(snapshot(6),))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        may_go_on.set()
        second.join(20)
    assert_sound(tmp_path / "checkpoints", 6)
    assert checkpoint.load(tmp_path / "checkpoints/5").networks["net"]["a"].eq(5).all()


def test_the_plan_is_made_anew_when_what_is_saved_changes(tmp_path):
    copy = ShardCopy(Ranks())
    for names in ["a"], ["a"], ["a", "b"], ["b"]:
        one = Snapshot(1, {"net": {name: torch.ones(2) for name in names}})
        plan = copy.plan
        copy.take(one)
        assert [item.index.fqn for item in copy.plan.items] == [f"net.safetensors/{name}" for name in names]
        if names == ["a"] and plan.items:
            assert copy.plan is plan
        publish(tmp_path, copy, None, Hooks())
        assert checkpoint.load(tmp_path / "1").networks["net"].keys() == set(names)
