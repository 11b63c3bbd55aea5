"""One process per run folder: who holds it is named, and a holder that is gone holds nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toys
from dlas.errors import TrainingError
from dlas.observe import lock
from dlas.observe.lock import locked
from runs import configure, trainer

fcntl = pytest.importorskip("fcntl")
ROOT = Path(__file__).resolve().parent.parent
HOLD = "import sys, time, os\nfrom pathlib import Path\nfrom dlas.observe.lock import locked\n"


def holder(file: Path, then: str) -> subprocess.Popen:
    """Another process that has the lock and does something."""
    code = f"{HOLD}with locked(Path({str(file)!r}), 'training'):\n    print('held', flush=True)\n    {then}\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "codes")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_message_names_the_holder(tmp_path):
    file = tmp_path / ".run.lock"
    other = holder(file, "time.sleep(60)")
    try:
        words = rf"^process {other.pid} on \S+ has been training since 2\d+-.* another 'name'"
        with pytest.raises(TrainingError, match=words), locked(file, "training"):
            raise AssertionError("two holders")
    finally:
        other.kill()  # as a crash would: nothing is cleaned up
        other.wait()
    with locked(file, "training"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert file.read_text() == ""


def test_a_process_that_the_holder_started_does_not_keep_the_lock(tmp_path):
    file = tmp_path / ".run.lock"
    other = holder(file, "(time.sleep(0.3), os._exit(0)) if os.fork() else time.sleep(3)")
    assert other.wait(10) == 0
    with locked(file, "training"):
        pass
    other.stdout.close()


def test_never_resuming_moves_nothing_while_the_run_goes_on(tmp_path):
    trainer(tmp_path, toys.PSNR).run()
    run = trainer(tmp_path, toys.PSNR)
    run.resume = "never"
    other = holder(tmp_path / ".toy.lock", "time.sleep(60)")
    try:
        with pytest.raises(TrainingError, match=f"process {other.pid} "):
            run.run()
    finally:
        other.kill()
        other.wait()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["toy"]
    assert (tmp_path / "toy/checkpoints/latest").read_text() == "8"
    run.run()
    names = sorted(path.name.split("_")[0] for path in tmp_path.iterdir() if path.is_dir())
    assert names == ["toy", "toy"]
    (archived,) = tmp_path.glob("toy_archived_*")
    assert (archived / "checkpoints/8/manifest.json").is_file()
    assert configure(tmp_path, toys.PSNR).name == "toy"


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def claim(file: Path, **holder: object) -> Path:
    """What a holder leaves where there are no locks."""
    path = file.with_name(f"{file.name}.holder")
    path.write_text(json.dumps({"since": "2026-01-01 00:00:00", **holder}))
    return path


def test_without_locks_a_living_holder_is_respected(tmp_path, no_locks):
    file = tmp_path / ".run.lock"
    words = f"process {os.getpid()} on"
    with locked(file, "training"), pytest.raises(TrainingError, match=words), locked(file, "training"):
        raise AssertionError("two holders")
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with locked(file, "training"):
        pass


def test_without_locks_a_holder_that_has_ended_is_passed_over(tmp_path, no_locks):
    file = tmp_path / ".run.lock"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claim(file, pid=ended.pid, host=lock._host())
    with locked(file, "training"):
        pass
    claim(file, pid=os.getpid(), host=lock._host(), started="another process that had this number")
    with locked(file, "training"):
        pass


def test_without_locks_a_holder_elsewhere_lives_as_long_as_it_gives_signs(tmp_path, no_locks, monkeypatch):
    file = tmp_path / ".run.lock"
    path = claim(file, pid=1, host="elsewhere")
    with pytest.raises(TrainingError, match="process 1 on elsewhere"), locked(file, "training"):
        raise AssertionError("two holders")
    old = time.time() - 1000
    os.utime(path, (old, old))
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    with locked(file, "training"):
        os.utime(path, (old, old))
        time.sleep(0.3)
        assert path.stat().st_mtime > old + 900  # it gives signs itself
