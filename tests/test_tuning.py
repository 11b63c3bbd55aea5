"""Finding the fastest settings: what is measured, what is believed, what is written."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from dlas.cli.main import main
from dlas.config import Config, load
from dlas.engine.tuning import Plan, measuring, search, tune
from dlas.engine.tuning.measuring import Speed
from dlas.engine.tuning.ratios import paired
from dlas.engine.tuning.search import Row, choose, pareto
from dlas.engine.tuning.settings import Setting, numeric_settings
from dlas.errors import TrainingError
from runs import configure

CPU = torch.device("cpu")


class Machine:
    """Measures nothing: speeds are a function of the setting and of the number of the call; or it is stopped after some."""

    def __init__(self, speed: Any, stop_after: int | None = None) -> None:
        self.speed = speed
        self.calls: list[Setting] = []
        self.stop_after = stop_after

    def __call__(self, config: Config, device: torch.device, seconds: float, iteration: int) -> Speed | None:
        if self.stop_after is not None and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        setting = Setting.of(config, device)
        self.calls.append(setting)
        found = self.speed(setting, len(self.calls))
        return None if found is None else Speed(found, None)


@pytest.fixture
def formula(monkeypatch):
    """The forecast is a formula, which saves the time of rehearsals."""
    monkeypatch.setattr(search, "forecast", lambda config: 1000 * config.train.micro_batch_size)
    monkeypatch.setattr(search, "heaviest_iteration", lambda config: 0)


def test_the_interval_of_a_ratio_is_that_of_the_sign_test():
    def ratio(values: list[float]) -> Any:
        return paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 1.0))

    few = ratio([1.2, 1.1, 1.3])
    assert (few.median, few.low, few.high, few.rounds) == (1.2, 1.1, 1.3, 3)
    assert few.coverage == pytest.approx(1 - 2 / 2**3)
    assert not few.certain  # three rounds are not enough, however clear they look
    ten = ratio([1.0 + 0.01 * k for k in range(10)])
    assert (ten.low, ten.high) == (1.01, 1.08)  # the second from either end: 1 - 2 (1 + 10) / 2^10
    assert ten.coverage == pytest.approx(1 - 22 / 1024)
    assert ten.certain
    assert not ratio([0.9, 1.1, 1.2, 1.1, 1.2]).certain
    assert ratio([2.0, 2.1]).certain
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_what_slows_whole_rounds_down_falls_out_of_the_ratio():
    slow = {0: 1.0, 1: 0.1, 2: 3.0, 3: 0.5, 4: 1.0}
    ratio = paired({n: 1.1 * s for n, s in slow.items()}, slow)
    assert (ratio.low, ratio.high) == pytest.approx((1.1, 1.1))
    assert ratio.certain


def rows(*speeds_and_memory: tuple[float, int]) -> list[Row]:
    found = []
    for number, (speed, memory) in enumerate(speeds_and_memory):
        speeds = dict.fromkeys(range(6), speed)
        found.append(Row(Setting(number + 1, "fp32", "contiguous", 0), speeds, memory))
        found[-1].against = paired(speeds, found[0].speeds)
    return found


def test_the_fastest_is_chosen_and_of_equals_the_one_with_least_memory():
    table = rows((1.0, 10), (1.5, 40), (1.5, 30), (1.2, 20), (0.9, 20))
    assert choose(table) is table[2]
    assert pareto(table) == [table[0], table[2], table[3]]


def test_a_setting_that_was_left_alone_early_is_not_chosen_for_its_memory():
    table = rows((1.0, 10), (1.5, 40))
    early = Row(Setting(9, "fp32", "contiguous", 0), {0: 1.3, 1: 1.4}, 1)
    early.against = paired(early.speeds, table[0].speeds)
    assert choose([*table, early]) is table[1]


def test_micro_batches_are_parts_of_the_batch_and_only_what_may_vary_does():
    own = Setting(12, "fp32", "contiguous", 0)
    assert [s.micro_batch for s in numeric_settings(own, 12, CPU, ["micro"])] == [12, 6, 3, 1]
    assert {s.memory_format for s in numeric_settings(own, 12, CPU, ["format"])} == {"contiguous", "channels_last"}
    assert numeric_settings(own, 12, CPU, []) == [own]


def test_the_search_finds_the_fastest_in_spite_of_noise_and_leaves_the_slow_alone(tmp_path, formula):
    def speed(setting: Setting, call: int) -> float:
        base = {4: 10.0, 2: 20.0, 1: 5.0}[setting.micro_batch] * (1.3 if setting.memory_format == "channels_last" else 1.0)
        return base * (1 + 0.05 * math.sin(37.0 * call))

    machine = Machine(speed)
    config = configure(tmp_path, toys.PSNR)
    found = tune(config, Plan(rounds=6, vary=("micro", "format")), tmp_path / "t.json", measure=machine)
    assert found.setting == Setting(2, "fp32", "channels_last", 0)
    first = found.stages[0].rows[0]
    assert (first.setting.micro_batch, first.setting.memory_format) == (4, "contiguous")
    counts = {row.setting: len(row.speeds) for row in found.stages[0].rows}
    assert counts[found.setting] == counts[first.setting] == 6
    assert counts[Setting(1, "fp32", "contiguous", 0)] == 2
    # Interleaved: no setting is measured twice before every other one was measured.
    assert len(set(machine.calls[:6])) == len(set(machine.calls[6:12])) == 6
    assert machine.calls[:6] != machine.calls[6:12]


def test_a_search_that_was_stopped_goes_on_and_another_file_starts_anew(tmp_path, formula):
    def speed(setting: Setting, call: int) -> float:
        return 1.0 + setting.micro_batch

    plan, config = Plan(rounds=3, vary=("micro",)), configure(tmp_path, toys.PSNR)
    whole = Machine(speed)
    tune(config, plan, tmp_path / "whole.json", measure=whole)
    stopped = Machine(speed, stop_after=5)
    with pytest.raises(KeyboardInterrupt):
        tune(config, plan, tmp_path / "t.json", measure=stopped)
    rest = Machine(speed)
    told: list[str] = []
    tune(config, plan, tmp_path / "t.json", told.append, rest)
    assert stopped.calls + rest.calls == whole.calls
    assert "going on after 5 measurements" in told[0]
    assert json.loads((tmp_path / "t.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    other = Machine(speed)
    tune(configure(tmp_path, toys.PSNR, "networks.generator.width=5"), plan, tmp_path / "t.json", told.append, other)
    assert len(other.calls) == len(whole.calls)
    assert "measured anew" in told[-1 - len(other.calls)]


def test_what_does_not_fit_by_the_forecast_is_never_run(tmp_path):
    config = configure(tmp_path, toys.PSNR)
    peaks = {n: measuring.forecast(Setting(n, "fp32", "contiguous", 0).applied(config)) for n in (4, 2, 1)}
    assert peaks[4] > peaks[2] > peaks[1]
    machine = Machine(lambda setting, call: 1.0)
    plan = Plan(rounds=2, vary=("micro",), memory=(peaks[4] + peaks[2]) // 2)
    found = tune(config, plan, tmp_path / "t.json", measure=machine)
    assert {setting.micro_batch for setting in machine.calls} == {2, 1}
    assert [row.fits for row in found.stages[0].rows] == [False, True, True]
    assert found.largest in (2, 3)
    assert found.bounded
    with pytest.raises(TrainingError, match="no setting fits"):
        tune(config, Plan(rounds=2, vary=("micro",), memory=10), tmp_path / "u.json", measure=machine)


def test_memory_is_found_by_trial_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(search, "available_memory", lambda device: 10**9)
    monkeypatch.setattr(search, "circumstances", lambda *given: {})
    monkeypatch.setattr(Setting, "of", staticmethod(_plain))
    machine = Machine(lambda setting, call: None if setting.micro_batch > 11 else 1.0 * setting.micro_batch)
    found = tune(configure(tmp_path, toys.PSNR), Plan(rounds=2, vary=("micro",)), tmp_path / "t.json", measure=machine)
    assert (found.largest, found.bounded, found.by_trial) == (11, True, True)


def _plain(config: Config, device: torch.device) -> Setting:
    size = config.train.micro_batch_size or config.datasets["train"].batch_size
    return Setting(size, config.precision, config.memory_format, config.datasets["train"].n_workers)


@pytest.mark.parametrize("text", [toys.PSNR, toys.GAN], ids=["psnr", "gan"])
def test_a_measurement_trains_for_real_and_leaves_no_trace(tmp_path, text):
    config = configure(tmp_path, text, "checkpoints.keep_best.metric=psnr")
    before = sorted(tmp_path.rglob("*"))
    speed = measuring.measure(config, CPU, 0.01, 2)
    assert speed.samples_per_second > 0
    assert speed.peak_bytes is None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_shortage_of_memory_is_an_answer_and_another_error_is_none(tmp_path, monkeypatch):
    config = configure(tmp_path, toys.PSNR)
    monkeypatch.setattr(measuring, "_measure", _raising(torch.OutOfMemoryError("CUDA out of memory")))
    assert measuring.measure(config, CPU, 0.01, 0) is None
    monkeypatch.setattr(measuring, "_measure", _raising(ValueError("something else")))
    with pytest.raises(ValueError, match="something else"):
        measuring.measure(config, CPU, 0.01, 0)


def _raising(error: Exception) -> Any:
    def fail(*given: Any) -> None:
        raise error

    return fail


def test_the_command_writes_a_file_that_trains(tmp_path, capsys, formula):
    (tmp_path / "options.yml").write_text(toys.PSNR)
    file = tmp_path / "options.yml"
    given = ["tune", "-opt", str(file), "--vary", "micro,format", "--rounds", "2", "--seconds", "0.01"]
    assert main([*given, "--set", f"path.experiments={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    tuned = tmp_path / "options.tuned.yml"
    assert f"dlas train -opt {tuned} --set path.experiments={tmp_path}" in printed
    assert "Largest micro-batch that fits" in printed
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "options.tuned.json", "options.tuned.yml", "options.yml",
    ]  # fmt: skip
    config = load(tuned)
    assert config.train.niter == load(file).train.niter
    assert f"micro-batches of {config.train.micro_batch_size}, " in printed
    for wrong in (["--vary", "colour"], ["--rounds", "1"], ["-o", str(file)]):
        assert main([*given, *wrong]) == 2


def test_a_search_that_is_killed_leaves_a_whole_record(tmp_path):
    (tmp_path / "options.yml").write_text(f"plugins: [{toys.__file__}]\n" + toys.PSNR)
    code = (
        "import os, signal; from dlas.engine.tuning.record import Record\n"
        "def save(self, earlier=Record.save):\n"
        "    earlier(self)\n"
        "    if self.count == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Record.save = save\n"
        "from dlas.engine.tuning import search\n"
        "search.forecast, search.heaviest_iteration = lambda config: 1, lambda config: 0\n"
        "from dlas.cli.main import main\n"
        f"main(['tune', '-opt', {str(tmp_path / 'options.yml')!r}, '--vary', 'micro', '--rounds', '2', '--seconds', '0.01'])\n"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True).returncode == -9
    stages = json.loads(Path(tmp_path / "options.tuned.json").read_text())["stages"]
    assert sum(len(each["speeds"]) for each in stages["numeric"].values()) == 2
