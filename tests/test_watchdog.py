"""A loop that hangs is noticed, and the report says where."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from pathlib import Path

import pytest

import toys
from dlas.config.schema import WatchdogConfig
from dlas.data.sampler import SampleOrder
from dlas.engine.stage import STAGE, Stage
from dlas.engine.watchdog import Watchdog
from runs import trainer


def watch(log: Path, stage: Stage, seconds: float = 0.1) -> Watchdog:
    settings = WatchdogConfig(seconds=seconds)
    return Watchdog(settings, log, lambda: 7, lambda: ["picture.png (worker process 5)"], stage)


def sleep_in_a_loss(seconds: float) -> None:
    time.sleep(seconds)


def test_a_stage_that_lasts_too_long_is_reported_again_and_again(tmp_path, capfd):
    log, stage = tmp_path / "train.log", Stage()
    with watch(log, stage):
        stage.enter("backward", "generator")
        sleep_in_a_loss(0.9)
        stage.enter("optimizer", "generator")
        time.sleep(0.06)
    text = log.read_text()
    lasted = [
        float(each) for each in re.findall(r"the loop hangs: .* in stage 'backward' of 'generator' for ([0-9.]+) s", text)
    ]
    assert 2 <= len(lasted) <= 4
    assert all(seconds >= 0.1 * 2**number for number, seconds in enumerate(lasted))
    assert "after 7 completed iterations" in text
    assert "reading, or read last: picture.png (worker process 5)" in text
    assert "thread MainThread:" in text
    assert "in sleep_in_a_loss" in text
    assert "thread watchdog" not in text
    assert "the loop goes on, after" in text
    assert "in sleep_in_a_loss" in capfd.readouterr().err


def test_a_loop_that_moves_is_left_alone(tmp_path):
    log, stage = tmp_path / "train.log", Stage()
    with watch(log, stage, seconds=0.3):
        for _ in range(30):
            stage.enter("data")
            time.sleep(0.02)
    assert log.read_text() == ""


def test_none_is_started_for_zero_seconds(tmp_path):
    with watch(tmp_path / "train.log", Stage(), seconds=0) as watchdog:
        assert not watchdog._thread.is_alive()
    assert not (tmp_path / "train.log").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs the C library")
def test_a_library_that_lets_no_thread_run_is_reported_too(tmp_path):
    log, stage = tmp_path / "train.log", Stage()
    with watch(log, stage, seconds=0.1):
        time.sleep(0.05)
        ctypes.PyDLL(None).sleep(2)  # keeps the interpreter's lock
    assert "Timeout" in log.read_text()
    assert "test_a_library_that_lets_no_thread_run" in log.read_text()


def test_the_loop_names_its_stages(tmp_path, monkeypatch):
    seen: list[tuple[str, str]] = []
    original = Stage.enter

    def enter(self, name, of=""):
        seen.append((name, of))
        original(self, name, of)

    monkeypatch.setattr(Stage, "enter", enter)
    trainer(tmp_path, toys.GAN, "train.niter=2", "train.mega_batch_factor=2").run()
    both = [(stage, "generator") for stage in ("forward", "backward")] * 2 + [("optimizer", "generator")]
    first = [("data", ""), ("transfer", ""), *((stage, "discriminator") for stage, _ in both), *both]
    first += [("averages", ""), ("other", "")]
    pictures = [("eval", ""), ("eval", "picture0"), ("eval", "picture1")]
    assert seen == [*first, *first, ("logging", ""), *pictures, ("checkpoint", "")]


def test_a_hanging_data_set_is_named_in_the_log_of_the_run(tmp_path, monkeypatch):
    original = toys.ToyPairs.__getitem__

    def slow(self, request):
        if self.training and request.position == 5:
            time.sleep(0.5)
        return original(self, request)

    monkeypatch.setattr(toys.ToyPairs, "__getitem__", slow)
    run = trainer(tmp_path, toys.PSNR, "train.watchdog.seconds=0.2", "train.niter=2", "seed=1")
    index = SampleOrder(len(run.datasets["train"]), run.config.seed).index(5)
    assert run.run().step == 2
    text = (tmp_path / "toy/train.log").read_text()
    assert "in stage 'data' for 0." in text
    assert "after 1 completed iterations" in text
    assert f"reading, or read last: sample {index}" in text
    assert "in slow" in text


def test_noting_a_stage_costs_next_to_nothing():
    start = time.perf_counter()
    for _ in range(10_000):
        STAGE.enter("forward", "generator")
    assert (time.perf_counter() - start) / 10_000 < 20e-6  # 0.1 microseconds on an idle machine
