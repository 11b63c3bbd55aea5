"""What a restart finds, at the moments that random kills seldom hit."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import toys
from dlas.context import Context
from dlas.data.base import BadSample
from dlas.data.loader import build_loader
from dlas.data.sampler import SampleOrder
from dlas.engine import checkpoint
from dlas.engine.meter import Meter
from dlas.engine.retention import Retention
from dlas.engine.trainer import Trainer
from dlas.observe.recorder import Recorder
from dlas.observe.run_folder import RunFolder
from resume.harness import differences
from runs import rows, trainer
from test_training import interrupt_after


def rewrite_state(path: Path, change) -> None:
    """Changes a checkpoint's state.json, and its manifest with it."""
    state = json.loads((path / "state.json").read_text())
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    content = (path / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.pop("sha256")
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_meter_goes_on_with_the_same_bits(tmp_path):
    values = torch.rand(9, generator=torch.Generator().manual_seed(0))

    def add(meter, numbers):
        for number in numbers:
            meter.add("b/loss", values[number], 0.1 * (number + 1))
            if number % 2:
                meter.add("a/norm", values[number].double())

    whole, first, second = Meter(), Meter(), Meter()
    add(whole, range(9))
    add(first, range(5))
    checkpoint.save(tmp_path, checkpoint.Snapshot(5, {}, meter=first.state_dict()))
    second.load_state_dict(checkpoint.load(tmp_path / "5").meter, torch.device("cpu"))
    add(second, range(5, 9))
    assert list(second.read().items()) == list(whole.read().items())
    assert second.state_dict() == {}
    second.load_state_dict({}, torch.device("cpu"))
    assert second.read() == {}


@pytest.mark.parametrize("stop_at", [4, 8])
def test_a_validation_that_a_stop_puts_off_comes_with_the_restart(tmp_path, monkeypatch, stop_at):
    trainer(tmp_path, toys.PSNR, "name=whole").run()
    with monkeypatch.context() as patch:
        interrupt_after(patch, stop_at)
        assert trainer(tmp_path, toys.PSNR, "name=halves").run().step == stop_at
    assert stop_at not in [row["step"] for row in rows(tmp_path / "halves", "val")]
    # Killed after the row was written, and before the next checkpoint: the row must not be there twice.
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", lambda self: None)
        trainer(tmp_path, toys.PSNR, "name=halves", f"train.niter={max(stop_at, 5)}").run()
    assert stop_at in [row["step"] for row in rows(tmp_path / "halves", "val")]
    assert trainer(tmp_path, toys.PSNR, "name=halves").run().step == 8
    assert rows(tmp_path / "whole", "val") == rows(tmp_path / "halves", "val")
    assert rows(tmp_path / "whole", "train") == rows(tmp_path / "halves", "train")


def test_bad_files_of_earlier_sittings_stay_counted(tmp_path, monkeypatch):
    original = toys.ToyPairs.__getitem__
    broken = {3}

    def read(self, request):
        if self.training and request.index in broken:
            raise BadSample(f"{request.index}.png", "is broken")
        return original(self, request)

    monkeypatch.setattr(toys.ToyPairs, "__getitem__", read)
    monkeypatch.setattr(toys.ToyPairs, "on_bad_file", "skip")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        trainer(tmp_path, toys.PSNR).run()
    broken.clear()
    trainer(tmp_path, toys.PSNR).run()
    assert [row.get("bad_files") for row in rows(tmp_path / "toy", "train")][1:] == [1, 1, 1]


def test_a_checkpoint_without_the_newer_entries_is_taken(tmp_path):
    trainer(tmp_path, toys.PSNR, "train.niter=6", "logger.print_freq=4").run()

    def as_before(state):
        del state["meter"], state["progress"]["validated"], state["progress"]["bad_files"]

    rewrite_state(tmp_path / "toy/checkpoints/6", as_before)
    assert trainer(tmp_path, toys.PSNR).run().step == 8
    assert [row["step"] for row in rows(tmp_path / "toy", "val")] == [4, 6, 8]


def test_a_restart_far_into_a_run_reads_only_what_it_trains_on(tmp_path, monkeypatch):
    far = 10**9
    trainer(tmp_path, toys.PSNR, "train.niter=3").run()
    snapshot = checkpoint.load(tmp_path / "toy/checkpoints/3")
    snapshot.step = far
    snapshot.progress |= {"step": far, "samples": 4 * far, "validated": far}
    checkpoint.save(tmp_path / "toy/checkpoints", snapshot)
    read, original = [], toys.ToyPairs.__getitem__
    monkeypatch.setattr(
        toys.ToyPairs, "__getitem__", lambda self, r: (read.append(r.position) if self.training else None, original(self, r))[1]
    )
    orders = []
    permutation = SampleOrder.index
    monkeypatch.setattr(SampleOrder, "index", lambda self, p: (orders.append(p), permutation(self, p))[1])
    assert trainer(tmp_path, toys.PSNR, f"train.niter={far + 2}", "train.val_freq=0").run().step == far + 2
    assert read == orders == list(range(4 * far, 4 * far + 8))


def test_a_kill_before_latest_was_written_is_made_up_for(tmp_path):
    trainer(tmp_path, toys.PSNR).run()
    (tmp_path / "toy/checkpoints/latest").write_text("6")
    trainer(tmp_path, toys.PSNR).run()
    assert (tmp_path / "toy/checkpoints/latest").read_text() == "8"


def test_a_kill_while_rows_are_dropped_loses_none(tmp_path, monkeypatch):
    trainer(tmp_path, toys.PSNR, "name=whole").run()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        trainer(tmp_path, toys.PSNR, "name=halves").run()
    metrics = tmp_path / "halves/metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"phase": "train", "step": 6}\n{"phase": "val", "st')
    (tmp_path / "halves/.metrics.jsonl.partial").write_text(metrics.read_text()[:70])  # as the kill left it
    trainer(tmp_path, toys.PSNR, "name=halves").run()
    assert differences(tmp_path / "whole", tmp_path / "halves")[1:] == []  # there is one more checkpoint, at the stop
    assert rows(tmp_path / "whole", "train") == rows(tmp_path / "halves", "train")


def test_rows_that_are_no_rows_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    good = '{"phase": "train", "step": 1}\n'
    folder.metrics.write_bytes(good.encode() + b'\0\0\0\n3\n{"a": 1}\n{"phase": "train", "step": "x"}\n\xff\xfe\n{"phase": "tr')
    folder.forget_after(1)
    assert folder.metrics.read_text() == good


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_all_rows_up_to_the_checkpoint_and_none_twice(tmp_path):
    def sitting(start, *steps):
        recorder = Recorder(tmp_path / "metrics.jsonl", tmp_path / "tb", start)
        for step in steps:
            recorder.train(step, step, 0.0, {"g/loss": float(step + 100 * start)})
        return recorder

    first = sitting(0, 1, 2)
    first.flush()
    assert scalars(tmp_path / "tb", "g/loss") == [(1, 1), (2, 2)]
    second = sitting(0, 1, 2, 3)  # killed before its first checkpoint: from the start again
    second.flush()
    third = sitting(2, 3)
    third.flush()
    assert scalars(tmp_path / "tb", "g/loss") == [(1, 1), (2, 2), (3, 203)]
    for recorder in (first, second, third):
        recorder.close()


def test_a_run_killed_right_after_its_last_checkpoint_still_settles_what_stays(tmp_path, monkeypatch):
    options = ["checkpoints={keep_last: 1, keep_best: {metric: psnr}, background: false}"]
    trainer(tmp_path, toys.PSNR, *options, "name=whole").run()
    original = Retention.apply

    def apply(self, target, best):
        if target.name == "8":
            raise KeyboardInterrupt
        original(self, target, best)

    killed_run = trainer(tmp_path, toys.PSNR, *options, "name=killed")
    with monkeypatch.context() as patch:
        patch.setattr(Retention, "apply", apply)
        with pytest.raises(KeyboardInterrupt):
            killed_run.run()
    killed, whole = (tmp_path / name / "checkpoints" for name in ("killed", "whole"))
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in killed.iterdir()) != names
    trainer(tmp_path, toys.PSNR, *options, "name=killed").run()
    assert sorted(path.name for path in killed.iterdir()) == names
    assert (killed / "best").read_text() == (whole / "best").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_children_of_a_killed_run_do_not_keep_its_folder_locked(tmp_path):
    context = multiprocessing.get_context("fork")
    runs, done = context.Event(), context.Event()

    def wait():
        runs.set()
        done.wait()

    with RunFolder(tmp_path / "run").locked():
        child = context.Process(target=wait, daemon=True)
        child.start()
        assert runs.wait(60)
    try:
        with RunFolder(tmp_path / "run").locked():
            assert child.is_alive()
    finally:
        done.set()
        child.join()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_samples_and_noise(ranks):
    dataset = toys.ToyPairs("train", length=7)
    order, start, size = SampleOrder(7, seed=3), 20, 8

    def global_batches(world):
        loaders = [
            build_loader(dataset, batch_size=size, order=order, start_position=start, world_size=world, rank=rank)
            for rank in range(world)
        ]
        for _ in range(3):
            parts = [next(loader) for loader in loaders]
            contexts = [Context({}, seed=3, positions=part["positions"]) for part in parts]
            yield (
                [p for part in parts for p in part["positions"]],
                [path for part in parts for path in part["path"]],
                torch.cat([part["lq"] for part in parts]),
                torch.cat([context.randn((5,), "noise") for context in contexts]),
            )

    for found, expected in zip(global_batches(ranks), global_batches(1), strict=True):
        assert found[:2] == expected[:2]
        assert all(torch.equal(a, b) for a, b in zip(found[2:], expected[2:], strict=True))


def test_the_number_of_workers_may_change_between_sittings(tmp_path, monkeypatch):
    trainer(tmp_path, toys.PSNR, "name=whole").run()
    for stop_at, workers in ((3, 0), (5, 2), (99, 1)):
        with monkeypatch.context() as patch:
            interrupt_after(patch, stop_at)
            trainer(tmp_path, toys.PSNR, "name=parts", f"datasets.train.n_workers={workers}").run()
    (extra,) = differences(tmp_path / "whole", tmp_path / "parts")
    assert "checkpoints ['3', '5', '6', '8', 'latest'] instead of ['3', '6', '8', 'latest']" in extra
