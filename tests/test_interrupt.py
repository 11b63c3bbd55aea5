"""Requests to stop: which signal counts, where it is heard at once, and that nothing is left half done."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import toys
from dlas.engine import checkpoint
from dlas.engine.interrupt import Stopping, StopRequest
from dlas.engine.validation import Validation
from runs import assert_same_tensors, rows, trainer


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_each_signal_is_a_request_and_its_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        send(number)
        assert stop.signal is number
    assert signal.getsignal(number) is before


def test_the_first_signal_tells_how_the_run_ends_and_the_second_ctrl_c_ends_it_at_once():
    with StopRequest() as stop:
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert stop.signal is signal.SIGUSR1
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_waiting_ends_with_a_request_and_nothing_else_does():
    with StopRequest() as stop:
        with pytest.raises(Stopping), stop.ends_waiting():
            send(signal.SIGTERM)
        with pytest.raises(Stopping), stop.ends_waiting():
            raise AssertionError("it came before, so nothing is waited for")
    with StopRequest() as stop:
        with stop.ends_waiting():
            pass
        send(signal.SIGTERM)  # raises nothing here


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_waits_for_data_saves_and_stops(tmp_path, monkeypatch, workers):
    original = toys.ToyPairs.__getitem__

    def slow(self, request):
        if self.training and request.position == 13:
            time.sleep(3)
        return original(self, request)

    monkeypatch.setattr(toys.ToyPairs, "__getitem__", slow)
    run = trainer(tmp_path, toys.PSNR, f"datasets.train.n_workers={workers}")
    sleeper = threading.Thread(target=signal_after_step, args=(run, 3))
    sleeper.start()
    saved: list[float] = []
    save = run.save
    start = time.monotonic()
    monkeypatch.setattr(run, "save", lambda: (saved.append(time.monotonic() - start), save())[1])
    result = run.run()
    sleeper.join()
    assert (result.step, result.stopped_by) == (3, signal.SIGUSR1)
    assert (tmp_path / "toy/checkpoints/latest").read_text() == "3"
    assert saved[-1] < 2.5
    monkeypatch.undo()
    trainer(tmp_path, toys.PSNR).run()
    trainer(tmp_path, toys.PSNR, "name=straight").run()
    assert_same_tensors(tmp_path / "toy/checkpoints/8", tmp_path / "straight/checkpoints/8")
    assert rows(tmp_path / "toy", "val") == rows(tmp_path / "straight", "val")


def signal_after_step(run, step: int) -> None:
    while run.progress.step < step:
        time.sleep(0.01)
    time.sleep(0.3)
    send(signal.SIGUSR1)


@pytest.mark.parametrize("validation", [4, 8], ids=["between", "at the end"])
def test_a_validation_that_was_broken_off_is_made_when_the_run_goes_on(tmp_path, monkeypatch, validation):
    text = toys.PSNR.replace("  val: {mode: toy_pairs}\n", "  val: {mode: toy_pairs}\n  more: {mode: toy_pairs}\n")
    original = Validation._show
    shown: list[int] = []

    def show(self, name, step, *arguments):
        original(self, name, step, *arguments)
        shown.append(step)
        if step == validation and shown.count(validation) == 3:  # within the second set
            send(signal.SIGTERM)

    monkeypatch.setattr(Validation, "_show", show)
    result = trainer(tmp_path, text).run()
    assert (result.step, result.stopped_by) == (validation, signal.SIGTERM)
    assert shown.count(validation) == 3
    monkeypatch.undo()
    assert trainer(tmp_path, text).run().step == 8
    trainer(tmp_path, text, "name=straight").run()
    assert_same_tensors(tmp_path / "toy/checkpoints/8", tmp_path / "straight/checkpoints/8")
    for phase in ("train", "val"):
        assert rows(tmp_path / "toy", phase) == rows(tmp_path / "straight", phase)
    best = [checkpoint.load(tmp_path / name / "checkpoints/8").progress["best"] for name in ("toy", "straight")]
    assert best[0] == best[1]


def test_a_signal_while_a_checkpoint_is_written_lets_it_be_finished(tmp_path, monkeypatch):
    original = checkpoint._write

    def write(partial, copy):
        if copy.step == 3:
            send(signal.SIGTERM)
        return original(partial, copy)

    monkeypatch.setattr(checkpoint, "_write", write)
    result = trainer(tmp_path, toys.PSNR, "checkpoints.background=false").run()
    assert (result.step, result.stopped_by) == (3, signal.SIGTERM)
    assert checkpoint.find_fault(tmp_path / "toy/checkpoints/3") is None
