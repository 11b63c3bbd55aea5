"""Networks compiled by torch.compile: the same training, and when `dlas tune` takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import nn

import toys
from dlas.config import Config
from dlas.engine.compiling import compile_networks
from dlas.engine.tuning import Plan, search, tune
from dlas.engine.tuning.measuring import Speed
from dlas.engine.tuning.report import render, write_include
from dlas.engine.tuning.search import pays_back
from dlas.engine.tuning.settings import Setting
from dlas.errors import ConfigurationError
from runs import checkpoint_tensors, configure, rows, trainer

EAGER = Setting(4, "fp32", "contiguous", 0)


@pytest.fixture
def traced(monkeypatch):
    """Networks are traced as for compiling, and what was traced is run by torch: no compiler is needed. Counts the graphs."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def compile_in_place(self: nn.Module) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", compile_in_place)
    yield graphs
    torch._dynamo.reset()


def test_a_compiled_training_is_the_same_one_with_the_same_names(tmp_path, traced):
    overrides = ("networks.generator.dropout=0", "train.niter=4")
    eager = trainer(tmp_path, toys.PSNR, *overrides, "name=eager").run().folder
    assert not traced
    compiled = trainer(tmp_path, toys.PSNR, *overrides, "name=compiled", "compile=true").run().folder
    assert traced
    for one, other in zip(rows(eager, "train"), rows(compiled, "train"), strict=True):
        assert one["generator/pix"] == pytest.approx(other["generator/pix"], rel=1e-5)
    tensors, others = (checkpoint_tensors(each / "checkpoints/4") for each in (eager, compiled))
    assert tensors.keys() == others.keys()
    assert all(torch.allclose(value, others[key], atol=1e-5) for key, value in tensors.items() if not key.endswith("calls"))


def test_spread_networks_are_not_compiled():
    with pytest.raises(ConfigurationError, match="compile: true is not possible with 'strategy: fsdp'"):
        compile_networks({"net": nn.Linear(1, 1)}, whole=False)


class Machine:
    """Speeds by whether it is compiled, with noise; starting takes `start` seconds where it is."""

    def __init__(self, eager: float, compiled: float | Exception, start: float) -> None:
        self.speeds = {False: eager, True: compiled}
        self.start = start
        self.calls = 0

    def __call__(self, config: Config, device: torch.device, seconds: float, iteration: int) -> Speed:
        self.calls += 1
        speed = self.speeds[config.compile]
        if isinstance(speed, Exception):
            raise speed
        return Speed(speed * (1 + 0.01 * (self.calls % 3)), None, self.start if config.compile else 0.0)


@pytest.fixture
def found(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "forecast", lambda config: 1000)
    monkeypatch.setattr(search, "heaviest_iteration", lambda config: 0)

    def run(machine: Machine, *overrides: str) -> Any:
        config = configure(tmp_path, toys.PSNR, "train.niter=10000", *overrides)  # of 4 samples each
        return tune(config, Plan(rounds=6, vary=("compile",)), tmp_path / "t.json", measure=machine)

    return run


def test_it_is_taken_where_it_is_faster_and_the_run_is_long_enough(found, tmp_path):
    tuned = found(Machine(10.0, 15.0, start=600.0))  # 4000 s against 2667 s
    assert tuned.setting == Setting(4, "fp32", "contiguous", 0, compiled=True)
    text = render(tuned, 4)
    assert "Compiling takes 600.0 s at the start of a run" in text
    assert "Chosen: fp32, contiguous, micro-batches of 4, 0 workers, compiled" in text
    write_include(tmp_path / "out.yml", tmp_path / "options.yml", tuned)
    assert yaml.safe_load((tmp_path / "out.yml").read_text())["compile"] is True


@pytest.mark.parametrize(
    "machine",
    [Machine(10.0, 15.0, start=1400.0), Machine(10.0, 10.0, start=0.0), Machine(10.0, 5.0, start=0.0)],
    ids=["the run is too short", "no faster", "slower"],
)
def test_it_is_left_where_it_does_not_pay(found, machine):
    assert found(machine).setting == EAGER


def test_where_it_fails_the_reason_is_told_and_the_rest_goes_on(found):
    machine = Machine(10.0, RuntimeError("no C++ compiler\nand more"), start=0.0)
    tuned = found(machine)
    assert tuned.setting == EAGER
    assert "Compiling fails: RuntimeError: no C++ compiler" in render(tuned, 4)
    calls = machine.calls
    assert calls == 6 + 6 + 1  # six rounds of each stage, and one attempt
    found(machine)
    assert machine.calls == calls  # what failed is on record


def test_a_file_that_is_compiled_may_be_told_not_to_be(found):
    assert found(Machine(15.0, 10.0, start=1.0), "compile=true").setting == EAGER
    assert found(Machine(10.0, 15.0, start=1.0), "compile=true", "seed=7").setting.compiled


def test_what_compiling_takes_is_set_against_what_the_run_saves():
    def row(speed: float, start: float = 0.0) -> search.Row:
        return search.Row(EAGER, dict.fromkeys(range(6), speed), start=start)

    assert pays_back(row(10.0), row(20.0, start=49.0), samples=1000)  # 100 s against 50 s
    assert not pays_back(row(10.0), row(20.0, start=51.0), samples=1000)
