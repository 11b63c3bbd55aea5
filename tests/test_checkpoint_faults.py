"""Disks that fail and processes that die, at every file operation: the last good checkpoint is there, and nothing by halves."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import toys
from disks import Crash, Disk, crashes_at, fails_at
from dlas.config.schema import CheckpointsConfig, KeepBestConfig
from dlas.engine import checkpoint
from dlas.engine.checkpoint_writer import CheckpointWriter
from dlas.engine.figures import Figures
from dlas.engine.host_copy import HostCopy, Snapshot
from dlas.engine.tensor_file import TensorFile
from dlas.engine.trainer import Trainer
from dlas.errors import CheckpointError, TrainingError
from dlas.observe import disk
from dlas.observe.console import LogFile
from dlas.observe.recorder import Recorder
from dlas.observe.row_file import RowFile
from dlas.observe.run_folder import RunFolder
from runs import assert_same_tensors, rows, trainer
from test_training import interrupt_after

ROOT = Path(__file__).resolve().parent.parent
KINDS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE)


@pytest.fixture(autouse=True)
def disk_without_delay(monkeypatch):
    """Nothing here outlives a failure of the machine; that files are brought to the disk is seen from the calls."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def snapshot(step: int) -> Snapshot:
    weights = {"a": torch.full((3, 5), float(step)), "b": torch.full((2,), step, dtype=torch.int64)}
    return Snapshot(
        step, {"net": weights}, {"net": weights}, {"step": step}, {"s": {"m": torch.zeros(4) + step}}, parameters={"net": ["a"]}
    )


def host_copy(step: int) -> HostCopy:
    copy = HostCopy()
    copy.take(snapshot(step))
    return copy


def assert_sound(folder: Path, *steps: int) -> None:
    """The newest checkpoint is one of `steps`, says so itself, and no checkpoint is there by halves."""
    found = checkpoint.newest(folder)
    assert found is not None
    assert int(found.name) in steps
    assert checkpoint.load(found).networks["net"]["a"].eq(int(found.name)).all()
    assert [checkpoint.find_fault(path) for path in checkpoint.steps_in(folder).values()] == [None] * len(
        checkpoint.steps_in(folder)
    )


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def operations_of_saving(folder: Path, again: bool, patch: pytest.MonkeyPatch) -> int:
    with patch.context() as context:
        trial = folder / "trial"
        for step in (5, 6) if again else (5,):
            checkpoint.save(trial, snapshot(step))
        watched = Disk(context, trial)
        checkpoint.publish(trial, host_copy(6))
    shutil.rmtree(trial)
    return len(watched.operations)


# ------------------------------------------------------------------------------------------------------------- one checkpoint


@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_a_failure_of_any_file_operation_publishes_nothing_by_halves(tmp_path, monkeypatch, again):
    count = operations_of_saving(tmp_path, again, monkeypatch)
    assert count > 25
    outcomes = set()
    for number in range(1, count + 1):
        for times in (1, 1000):  # the disk works again at once, so cleaning up succeeds; or it does not
            folder = tmp_path / f"{number}-{times}"
            for step in (5, 6) if again else (5,):
                checkpoint.save(folder, snapshot(step))
            with monkeypatch.context() as context:
                Disk(context, folder, fails_at(number, KINDS[number % 4], times))
                try:
                    checkpoint.publish(folder, host_copy(6))
                    outcomes.add("success")
                except OSError:
                    outcomes.add("error")
            assert_sound(folder, 5, 6)
            checkpoint.publish(folder, host_copy(6))
            assert_sound(folder, 6)
            assert visible(folder) == ["5", "6", "latest"]
            assert (folder / "latest").read_text() == "6"
    assert "error" in outcomes


@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_after_a_crash_between_any_two_operations_a_restart_finds_the_newest_complete_one(tmp_path, monkeypatch, again):
    found = []
    for number in range(1, operations_of_saving(tmp_path, again, monkeypatch) + 1):
        folder = tmp_path / str(number)
        for step in (5, 6) if again else (5,):
            checkpoint.save(folder, snapshot(step))
        with monkeypatch.context() as context:
            watched = Disk(context, folder, crashes_at(number))
            with pytest.raises(Crash):
                checkpoint.publish(folder, host_copy(6))
        watched.lose_what_was_not_synced()
        checkpoint.tidy(folder)
        assert_sound(folder, *((6,) if again else (5, 6)))
        newest = checkpoint.newest(folder)
        assert newest is not None
        found.append(int(newest.name))
        assert not [name for name in visible(folder) if name.startswith((".partial-", ".replaced-", ".removed-"))]
    assert found == sorted(found)  # once it is there, it stays there
    assert found[-1] == 6


def test_a_crash_while_older_ones_are_removed_leaves_the_newest(tmp_path, monkeypatch):
    def prepared(folder: Path) -> CheckpointWriter:
        for step in (3, 4, 5):
            checkpoint.save(folder / "checkpoints", snapshot(step))
        return CheckpointWriter(RunFolder(folder), CheckpointsConfig(keep_last=1, background=False, retry_for=0.0))

    writer = prepared(tmp_path / "trial")
    with monkeypatch.context() as context:
        watched = Disk(context, tmp_path / "trial")
        writer.save(snapshot(6))
    assert visible(tmp_path / "trial/checkpoints") == ["6", "latest"]
    for number in range(1, len(watched.operations) + 1):
        writer = prepared(tmp_path / str(number))
        with monkeypatch.context() as context:
            Disk(context, tmp_path / str(number), crashes_at(number))
            with pytest.raises(Crash):
                writer.save(snapshot(6))
        folder = tmp_path / str(number) / "checkpoints"
        checkpoint.tidy(folder)
        assert_sound(folder, 5, 6)
        if not (folder / "6").exists():
            assert {"3", "4", "5"} <= set(visible(folder))


def test_a_process_that_is_killed_while_it_writes_leaves_what_was_there(tmp_path):
    checkpoint.save(tmp_path, snapshot(5))
    code = (
        "import os, sys, pathlib; sys.path[:0] = [{!r}, {!r}]\n"
        "import test_checkpoint_faults as t; from dlas.engine import checkpoint; from dlas.observe import disk\n"
        "real = os.write\n"
        "def write(handle, data):\n"
        "    real(handle, data[:len(data) // 2]); os._exit(9)\n"
        "disk.os.write = write\n"
        "checkpoint.save(pathlib.Path({!r}), t.snapshot(6))\n"
    ).format(str(ROOT / "codes"), str(ROOT / "tests"), str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 9
    assert ".partial-6" in visible(tmp_path)
    assert_sound(tmp_path, 5)
    checkpoint.save(tmp_path, snapshot(6))
    assert visible(tmp_path) == ["5", "6", "latest"]


def test_no_room_is_known_before_anything_is_written(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, snapshot(5))
    monkeypatch.setattr(disk, "free_bytes", lambda path: 100)
    watched = Disk(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"No space left on device: the checkpoint takes 0\.6 kB, and 0\.1 kB are free"):
        checkpoint.save(tmp_path, snapshot(6))
    assert watched.operations == ["mkdir"]  # of the folder that is there


# --------------------------------------------------------------------------------------------------------------------- damage


def damages(content: bytes, name: str) -> list[bytes | None]:
    """Every byte of the manifest, and bytes all over the others; cut off anywhere; gone."""
    positions = range(len(content)) if name == "manifest.json" else range(0, len(content), max(1, len(content) // 40))
    flips = [content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :] for at in positions]
    return [*flips, content[:-1], content[: len(content) // 2], b"", content + b"\0", None]


@pytest.mark.parametrize(
    "name", ["net.safetensors", "net.ema.safetensors", "optimizers.safetensors", "state.json", "manifest.json"]
)
def test_any_damage_to_any_file_is_found_and_the_one_before_is_taken(tmp_path, caplog, name):
    older, newer = (checkpoint.save(tmp_path, snapshot(step)) for step in (5, 6))
    content = (newer / name).read_bytes()
    for number, damage in enumerate(damages(content, name)):
        (newer / name).unlink() if damage is None else (newer / name).write_bytes(damage)
        assert checkpoint.find_fault(newer) is not None, (name, number)
        if number % 50 == 0:
            caplog.clear()
            assert checkpoint.newest(tmp_path) == older
            assert f"checkpoint {newer} is passed over: {name}" in caplog.text
            with pytest.raises(CheckpointError, match=str(newer)):
                checkpoint.load(newer)
        (newer / name).write_bytes(content)
    assert checkpoint.newest(tmp_path) == newer


MANIFESTS = [
    "", "null", "[]", "3", '"text"', "{}", "{", "[" * 5000, "\xff",
    '{"format": 1}', '{"format": 1, "step": 6, "files": []}', '{"format": 1, "step": 6, "files": {}}',
    '{"format": "1", "step": 6, "files": {}}', '{"format": 1, "step": 6, "files": {"a": 3}}',
    '{"format": 1, "step": 6, "files": {"../5/state.json": {"bytes": 1, "sha256": ""}}}',
]  # fmt: skip


@pytest.mark.parametrize("text", MANIFESTS, ids=lambda text: text[:30])
def test_manifests_that_are_none_are_found(tmp_path, text):
    path = checkpoint.save(tmp_path, snapshot(6))
    (path / "manifest.json").write_bytes(text.encode("latin-1"))
    assert checkpoint.find_fault(path) == "manifest.json is damaged"


def test_what_does_not_belong_to_a_checkpoint_is_found(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(6))
    save_file({"x": torch.zeros(1)}, path / "other.safetensors")
    assert checkpoint.find_fault(path) == "other.safetensors does not belong to it: manifest.json does not list it"
    (path / "other.safetensors").rename(path / ".other")  # what file systems leave
    assert checkpoint.find_fault(path) is None


def test_a_file_that_cannot_be_read_is_a_fault_and_no_crash(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path, snapshot(6))

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sha256", broken)
    assert checkpoint.find_fault(path) == "it cannot be read: Input/output error"


def test_checkpoints_of_the_first_version_are_read(tmp_path):
    path = checkpoint.save(tmp_path, snapshot(6))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))
    assert checkpoint.find_fault(path) is None


@pytest.mark.parametrize("content", [None, "", "77", "../5", "\0"])
def test_damaged_pointers_do_not_matter_to_a_restart(tmp_path, content):
    trainer(tmp_path, toys.PSNR, "checkpoints.keep_best={metric: psnr}").run()
    folder = tmp_path / "toy/checkpoints"
    for name in ("latest", "best"):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
    assert trainer(tmp_path, toys.PSNR, "train.niter=9", "checkpoints.keep_best={metric: psnr}").run().step == 9
    assert (folder / "latest").read_text() == "9"
    assert (folder / "best").read_text() in ("4", "8", "9")


def test_a_checkpoint_is_found_by_the_name_a_user_gives(tmp_path):
    for step in (5, 6):
        checkpoint.save(tmp_path, snapshot(step))
    assert (checkpoint.named(tmp_path, "latest").name, checkpoint.named(tmp_path, "5").name) == ("6", "5")
    with pytest.raises(CheckpointError, match=r"train with 'checkpoints\.keep_best', or take one of: 5, 6"):
        checkpoint.named(tmp_path, "best")
    (tmp_path / "best").write_text("5")
    assert checkpoint.named(tmp_path, "best").name == "5"
    (tmp_path / "5/state.json").unlink()
    for name in ("best", "5"):
        with pytest.raises(CheckpointError, match=r"state\.json is missing; there are: 5, 6"):
            checkpoint.named(tmp_path, name)
    (tmp_path / "best").write_text("../../x")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.named(tmp_path, "best")
    with pytest.raises(CheckpointError, match="'newest' is no checkpoint"):
        checkpoint.named(tmp_path, "newest")


# --------------------------------------------------------------------------------------------------------------------- format


def test_files_are_those_that_the_safetensors_library_writes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{str(dtype)[6:]}": torch.randn(shape, generator=generator).mul(9).to(dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16,
                      torch.uint8, torch.int8, torch.bool)
        for name, shape in (("z", (3, 5)), ("a", ()), ("ü", (0, 2)), ("m", (7,)))
    }  # fmt: skip
    tensors["strided"] = torch.randn(4, 3, 2, 2, generator=generator).to(memory_format=torch.channels_last)
    for number, content in enumerate((tensors, {}, {"one": torch.ones(3, dtype=torch.bool)})):
        file = TensorFile(content)
        file.copy(content)
        disk.write_file(tmp_path / f"{number}.ours", file.chunks())
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, tmp_path / f"{number}.theirs")
        assert (tmp_path / f"{number}.ours").read_bytes() == (tmp_path / f"{number}.theirs").read_bytes()
        back = load_file(tmp_path / f"{number}.ours")
        assert all(back[name].equal(tensor) and back[name].dtype == tensor.dtype for name, tensor in content.items())


def test_memory_is_used_again_and_follows_the_layout():
    copy = HostCopy()
    copy.take(snapshot(1))
    memory = copy.files["net.safetensors"].memory.data_ptr()
    copy.take(snapshot(2))
    assert copy.files["net.safetensors"].memory.data_ptr() == memory
    assert copy.files["net.safetensors"].views["a"].eq(2).all()
    copy.take(Snapshot(3, {"net": {"a": torch.zeros(9)}, "more": {}}))
    assert copy.files.keys() == {"net.safetensors", "more.safetensors", "optimizers.safetensors"}
    assert copy.files["net.safetensors"].views["a"].shape == (9,)


# --------------------------------------------------------------------------------------------------------------- the writer


def writer(folder: Path, flush=lambda: None, **settings) -> CheckpointWriter:
    run = RunFolder(folder / "run")
    run.claim()
    return CheckpointWriter(run, CheckpointsConfig(**{"retry_pause": 0.001, "retry_for": 20.0, **settings}), flush)


@pytest.mark.parametrize("kind", KINDS, ids=errno.errorcode.get)
def test_a_failure_of_any_operation_is_told_of_once_and_mended_by_trying_again(tmp_path, monkeypatch, caplog, kind):
    caplog.set_level(logging.INFO, logger="dlas")
    with monkeypatch.context() as context, writer(tmp_path / "trial") as trial:
        watched = Disk(context, tmp_path / "trial")
        trial.save(snapshot(5))
        trial.wait()
    total, told = len(watched.operations), 0
    for number in range(1, total + 1):
        folder = tmp_path / str(number)
        caplog.clear()
        with monkeypatch.context() as context, writer(folder) as each:
            Disk(context, folder, fails_at(number, kind, times=3))
            each.save(snapshot(5))
            each.wait()
        assert_sound(folder / "run/checkpoints", 5)
        assert [name for name in visible(folder / "run/checkpoints") if name != ".latest.partial"] == ["5", "latest"]
        warnings = [record.message for record in caplog.records if "cannot be written" in record.message]
        assert len(warnings) <= 1
        told += len(warnings)
    assert told == total


@pytest.mark.parametrize("background", [True, False])
def test_a_disk_that_stays_broken_ends_in_a_clear_stop(tmp_path, monkeypatch, caplog, background):
    each = writer(tmp_path, retry_for=0.05, background=background)
    each.save(snapshot(5))
    each.wait()
    Disk(monkeypatch, tmp_path, fails_at(1, errno.EROFS, times=10**6))
    with pytest.raises(CheckpointError) as caught, each:
        each.save(snapshot(6))
    message = str(caught.value)
    assert "the checkpoint of step 6 could not be written within" in message
    assert "Read-only file system" in message
    assert f"The newest complete one is {tmp_path}/run/checkpoints/5" in message
    assert caplog.text.count("cannot be written") == 1
    assert ("training goes on" in caplog.text) == background
    assert_sound(tmp_path / "run/checkpoints", 5)
    each.poll()  # told once


def test_training_goes_on_while_a_checkpoint_is_written_and_only_one_is(tmp_path, monkeypatch):
    gate, began = threading.Event(), threading.Event()
    real = disk.write_file

    def slow(path, chunks):
        began.set()
        assert gate.wait(20)
        return real(path, chunks)

    each = writer(tmp_path)
    monkeypatch.setattr(disk, "write_file", slow)
    value = snapshot(5)
    each.save(value)
    assert began.wait(20)
    value.networks["net"]["a"].zero_()  # the next iteration changes the weights
    assert checkpoint.newest(tmp_path / "run/checkpoints") is None
    threading.Timer(0.1, gate.set).start()
    each.save(snapshot(6))  # waits for the first
    assert (tmp_path / "run/checkpoints/5").is_dir()
    each.wait()
    assert_sound(tmp_path / "run/checkpoints", 6)
    assert checkpoint.load(tmp_path / "run/checkpoints/5").networks["net"]["a"].eq(5).all()


def test_an_error_of_the_run_ends_the_trying_and_is_the_one_that_is_shown(tmp_path, monkeypatch, caplog):
    each = writer(tmp_path, retry_for=600.0, retry_pause=600.0)
    Disk(monkeypatch, tmp_path, fails_at(1, errno.EIO, times=10**6))
    each.save(snapshot(5))
    with pytest.raises(TrainingError, match="the cause"), each:
        raise TrainingError("the cause")
    assert "the checkpoint of step 5 could not be written" in caplog.text


def test_a_second_interrupt_waits_for_no_disk(tmp_path, monkeypatch):
    each = writer(tmp_path, retry_for=600.0, retry_pause=600.0)
    Disk(monkeypatch, tmp_path, fails_at(1, errno.EIO, times=10**6))
    each.save(snapshot(5))
    with pytest.raises(KeyboardInterrupt), each:
        raise KeyboardInterrupt
    each._hurry.set()  # or the thread would outlive the test
    each._thread.join()


def test_faults_of_the_program_are_not_tried_again(tmp_path, monkeypatch):
    each = writer(tmp_path)
    monkeypatch.setattr(checkpoint, "publish", lambda *_: 1 / 0)
    each.save(snapshot(5))
    with pytest.raises(ZeroDivisionError):
        each.wait()


def test_rows_are_on_the_disk_before_the_checkpoint_is_published(tmp_path):
    there = []
    each = writer(tmp_path, flush=lambda: there.append((tmp_path / "run/checkpoints/5").exists()))
    each.save(snapshot(5))
    each.wait()
    assert there == [False]


def test_rows_that_cannot_be_written_hold_the_checkpoint_back(tmp_path):
    def fails():
        raise OSError(errno.ENOSPC, "No space left on device")

    each = writer(tmp_path, flush=fails, retry_for=0.01)
    each.save(snapshot(5))
    with pytest.raises(CheckpointError, match="No space left"):
        each.wait()
    assert visible(tmp_path / "run/checkpoints") == []


def test_a_forecast_warns_when_the_disk_is_too_small(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 20_000)
    each = writer(tmp_path)
    each.prepare(snapshot(0), [1])
    assert caplog.text == ""
    each.prepare(snapshot(0), range(1, 101))
    assert "the checkpoints to come take up to 48.0 kB more (100 of 0.5 kB), and 20.0 kB are free" in caplog.text
    each.wait()


# ------------------------------------------------------------------------------------------------------------------ retention


@pytest.mark.parametrize(
    ("settings", "best", "kept"),
    [
        ({}, None, [1, 2, 3, 4, 5, 6]),
        ({"keep_last": 2}, None, [5, 6]),
        ({"keep_last": 1, "keep_every": 2}, None, [2, 4, 6]),
        ({"keep_last": 1}, 3, [3, 6]),
        ({"keep_last": 9}, None, [1, 2, 3, 4, 5, 6]),
        ({"keep_every": 3}, None, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_what_is_kept(tmp_path, settings, best, kept):
    with writer(tmp_path, **settings) as each:
        for step in range(1, 7):
            each.save(snapshot(step), best if best is None or step >= best else None)
    folder = tmp_path / "run/checkpoints"
    assert sorted(checkpoint.steps_in(folder)) == kept
    assert visible(folder) == [*map(str, kept), *(["best"] if best else []), "latest"]
    if best:
        assert (folder / "best").read_text() == str(best)


def test_the_newest_good_one_stays_beside_a_damaged_later_one(tmp_path):
    folder = tmp_path / "run/checkpoints"
    for step in (5, 9):
        checkpoint.save(folder, snapshot(step))
    (folder / "9/state.json").unlink()
    with writer(tmp_path, keep_last=1) as each:  # the run went on from 5
        each.save(snapshot(6))
    assert sorted(checkpoint.steps_in(folder)) == [6, 9]
    assert checkpoint.newest(folder) == folder / "6"


def test_nothing_is_removed_before_the_new_one_reads_back_as_written(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "run/checkpoints"
    checkpoint.save(folder, snapshot(5))
    real, spoilt = checkpoint.publish, []

    def publish(*arguments):
        target = real(*arguments)
        assert (folder / "5").is_dir()
        if not spoilt:
            spoilt.append(target)
            (target / "state.json").write_text("what the disk made of it")
        return target

    monkeypatch.setattr(checkpoint, "publish", publish)
    with writer(tmp_path, keep_last=1) as each:
        each.save(snapshot(6))
    assert "reads back otherwise than it was written: state.json" in caplog.text
    assert sorted(checkpoint.steps_in(folder)) == [6]
    assert_sound(folder, 6)


def test_what_the_file_starts_from_is_never_removed(tmp_path):
    folder = tmp_path / "run/checkpoints"
    for step in (4, 5):
        checkpoint.save(folder, snapshot(step))
    run = RunFolder(tmp_path / "run")
    with CheckpointWriter(run, CheckpointsConfig(keep_last=1), protected=frozenset([folder / "4"])) as each:
        each.save(snapshot(6))
    assert sorted(checkpoint.steps_in(folder)) == [4, 6]


@pytest.mark.parametrize(("mode", "best"), [("max", 4), ("min", 6), (None, 4)])
def test_the_best_checkpoint_is_written_kept_and_named(tmp_path, monkeypatch, mode, best):
    figures = {2: 20.0, 4: 30.0, 6: 10.0, 8: 25.0}
    monkeypatch.setattr(
        "dlas.engine.evaluate.Evaluator.run", lambda self, data, step, *rest: Figures({"psnr": figures[step], "ssim_y": 0.5})
    )
    chosen = "" if mode is None else f", mode: {mode}"
    run = trainer(tmp_path, toys.PSNR, f"checkpoints={{keep_last: 1, keep_best: {{metric: psnr{chosen}}}}}", "train.val_freq=2",
                  "logger.save_checkpoint_freq=100")  # fmt: skip
    run.run()
    folder = tmp_path / "toy/checkpoints"
    assert sorted(checkpoint.steps_in(folder)) == [best, 8]
    assert (folder / "best").read_text() == str(best)
    assert run.progress.best["val/psnr"] == {"value": figures[best], "step": best}
    assert run.progress.best["val/ssim_y"]["step"] == 2


def test_metrics_may_say_that_less_is_better(monkeypatch):
    from dlas.metrics import higher_is_better
    from dlas.registry import METRICS

    assert higher_is_better("psnr")
    entry = METRICS.find("psnr")
    monkeypatch.setattr(METRICS, "find", lambda name: SimpleNamespace(attributes={"higher_is_better": False}, name=entry.name))
    assert not higher_is_better("psnr")


def test_a_best_section_names_a_set(tmp_path):
    from dlas.engine.best import BestFigures

    section = KeepBestConfig(metric="psnr", set="b")
    sets = {"train": SimpleNamespace(name=None), "a": SimpleNamespace(name=None), "x": SimpleNamespace(name="b")}
    config = SimpleNamespace(
        checkpoints=SimpleNamespace(keep_best=section), eval=SimpleNamespace(figures=["psnr"], values=[]), datasets=sets
    )
    best = BestFigures(config)
    figures: dict = {}
    for name, value, step in (
        ("a", 9.0, 1),
        ("b", 2.0, 1),
        ("b", 1.0, 2),
        ("b", float("nan"), 3),
        ("b", 3.0, 4),
        ("a", 10.0, 5),
    ):
        best.update(figures, name, "psnr", value, step)
    assert best.step(figures) == 4


# ----------------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("number", range(9, 130, 11))
def test_a_run_on_a_disk_that_fails_for_a_while_ends_as_on_a_good_one(tmp_path, monkeypatch, number):
    settings = ["checkpoints.retry_pause=0.001", "eval.save_images=false", "name=good"]
    trainer(tmp_path, toys.PSNR, *settings).run()
    run = trainer(tmp_path, toys.PSNR, *settings[:-1], "name=bad")
    with monkeypatch.context() as context:
        original = Trainer._announce

        def announce(self):  # before that a disk that fails ends the run at once
            Disk(context, tmp_path / "bad", fails_at(number, KINDS[number % 4], times=5))
            original(self)

        context.setattr(Trainer, "_announce", announce)
        run.run()
    assert_same_tensors(tmp_path / "good/checkpoints/8", tmp_path / "bad/checkpoints/8")
    assert sorted(checkpoint.steps_in(tmp_path / "bad/checkpoints")) == [3, 6, 8]
    for phase in ("train", "val"):
        assert rows(tmp_path / "good", phase) == rows(tmp_path / "bad", phase)


def at_step(patch: pytest.MonkeyPatch, actions: dict) -> None:
    original = Trainer.iterate

    def iterate(self, batch, log_gradients=False):
        result = original(self, batch, log_gradients)
        actions.pop(self.progress.step, lambda: None)()
        return result

    patch.setattr(Trainer, "iterate", iterate)


@pytest.mark.parametrize("in_its_place", ["nothing", "a folder"])
def test_a_run_folder_that_vanishes_is_not_made_anew_and_the_run_stops(tmp_path, monkeypatch, in_its_place):
    def vanish() -> None:
        run.writer.wait()
        (tmp_path / "toy").rename(tmp_path / "elsewhere")
        if in_its_place == "a folder":
            (tmp_path / "toy/checkpoints").mkdir(parents=True)

    at_step(monkeypatch, {4: vanish})
    options = ("checkpoints={retry_for: 0.05, retry_pause: 0.01}", "logger.tensorboard=true", "logger.visuals=[gen]",
               "logger.visual_debug_rate=1", "train.val_freq=1")  # fmt: skip
    run = trainer(tmp_path, toys.PSNR, *options)
    with pytest.raises(CheckpointError, match=r"was its disk unmounted\?.*The newest complete one is .*/toy/checkpoints/3;"):
        run.run()
    left = sorted(str(path.relative_to(tmp_path / "toy")) for path in (tmp_path / "toy").rglob("*"))
    assert left == ([] if in_its_place == "nothing" else ["checkpoints"])
    assert checkpoint.newest(tmp_path / "elsewhere/checkpoints") == tmp_path / "elsewhere/checkpoints/3"


def test_a_run_folder_that_comes_back_is_written_to_again(tmp_path, monkeypatch):
    trainer(tmp_path, toys.PSNR, "name=good").run()

    def vanish() -> None:
        run.writer.wait()
        (tmp_path / "toy").rename(tmp_path / "elsewhere")

    def come_back() -> None:
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "toy")  # under other numbers, as on another device

    at_step(monkeypatch, {4: vanish, 7: come_back})
    run = trainer(tmp_path, toys.PSNR, "checkpoints={retry_for: 10, retry_pause: 0.01}")
    checked = run.folder._places[1]
    monkeypatch.setattr(checked, "check", lambda: None)  # no signature in there: it counts as another folder
    run.run()
    assert sorted(checkpoint.steps_in(tmp_path / "toy/checkpoints")) == [3, 6, 8]
    for phase in ("train", "val"):
        assert rows(tmp_path / "good", phase) == rows(tmp_path / "toy", phase)


def test_weights_that_are_not_finite_stop_the_run_and_leave_what_was_saved(tmp_path):
    each = writer(tmp_path)
    each.save(snapshot(5))
    bad = snapshot(6)
    bad.networks["net"]["a"][1, 1] = torch.inf
    each.save(bad)
    with pytest.raises(TrainingError, match=r"weights of net are not finite at step 6.*newest checkpoint is .*/5\."):
        each.wait()
    assert_sound(tmp_path / "run/checkpoints", 5)


def test_pictures_tensorboard_and_logs_end_no_run(tmp_path, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")

    from torch.utils.tensorboard import SummaryWriter

    for module in ("visuals", "results", "validation"):
        monkeypatch.setattr(f"dlas.engine.{module}.write_png", full)
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    run = trainer(tmp_path, toys.PSNR, "logger.tensorboard=true", "logger.visuals=[gen]", "logger.visual_debug_rate=1")
    run.folder.log = Path("/dev/full")
    assert run.run().step == 8
    for what in ("pictures of the validation", "visuals", "TensorBoard's files", "the log file"):
        assert caplog.text.count(f"{what} cannot be written") == 1, what
    assert [row["step"] for row in rows(tmp_path / "toy", "train")] == [2, 4, 6, 8]


def test_the_end_of_a_log_file_that_is_full_is_no_error():
    with LogFile(Path("/dev/full")):
        logging.getLogger("dlas").warning("a line")


# ----------------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_written_once_each_and_in_order_whatever_operation_fails(tmp_path, monkeypatch, caplog):
    def work(path: Path) -> None:
        path.write_text("earlier\n")
        file = RowFile(path)
        for number in range(6):
            file.add(f"row {number}")
            if number in (1, 4):
                try:
                    file.sync()
                except OSError:
                    file.sync()
        file.close()

    with monkeypatch.context() as context:
        watched = Disk(context, tmp_path / "good")
        work(tmp_path / "good")
    count = len(watched.operations)
    for number in range(2, count + 1):  # not the opening at the start, which ends a run at once
        caplog.clear()
        with monkeypatch.context() as context:
            Disk(context, tmp_path / f"bad{number}", fails_at(number, errno.ENOSPC))
            work(tmp_path / f"bad{number}")
        assert (tmp_path / f"bad{number}").read_text() == (tmp_path / "good").read_text(), watched.operations[number - 1]
        assert "could not be written" not in caplog.text or number >= count - 2  # at the very end there is no later try
        assert caplog.text.count("kept in memory") <= 1


def test_half_a_row_is_cut_off_before_it_is_written_again(tmp_path, monkeypatch):
    file = RowFile(tmp_path / "rows")
    file.add("first")
    real, failing = os.write, []

    def write(handle, data):
        if len(failing) < 2:
            failing.append(real(handle, data[:3]) if not failing else 0)
            if len(failing) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return 3
        return real(handle, data)

    with monkeypatch.context() as context:
        context.setattr(os, "write", write)
        file.add("second")
        assert (tmp_path / "rows").read_text() == "first\nsec"
        file.add("third")
    file.close()
    assert (tmp_path / "rows").read_text() == "first\nsecond\nthird\n"


def test_rows_that_were_never_written_are_told_of_at_the_end(tmp_path, monkeypatch, caplog):
    Disk(monkeypatch, tmp_path, fails_at(2, errno.ENOSPC, times=10**6))
    recorder = Recorder(tmp_path / "metrics.jsonl", None)
    for step in (1, 2):
        recorder.train(step, step, 0.0, {})
    recorder.close()
    assert caplog.text.count("kept in memory") == 1
    assert f"2 rows of {tmp_path}/metrics.jsonl could not be written: No space left on device" in caplog.text


def test_dropping_rows_is_all_or_nothing(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    lines = [json.dumps({"phase": "train", "step": step}) + "\n" for step in range(6)]
    folder.metrics.write_text("".join(lines) + '{"st')
    whole = folder.metrics.read_text()
    for number in range(1, 9):
        with monkeypatch.context() as context, suppress(Crash):
            Disk(context, tmp_path, crashes_at(number))
            folder.forget_after(3)
        assert folder.metrics.read_text() in (whole, "".join(lines[:4]))
    assert folder.metrics.read_text() == "".join(lines[:4])


def test_a_signal_ends_the_run_when_its_checkpoint_is_written(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 5)
    assert trainer(tmp_path, toys.PSNR).run().step == 5
    assert checkpoint.find_fault(tmp_path / "toy/checkpoints/5") is None
