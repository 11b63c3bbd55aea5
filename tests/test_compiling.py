"""Networks compiled by torch.compile: the same training, what is told of it, and when `dlas tune` takes it."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import toys
from dlas.config import Config, load
from dlas.config.schema import CompileConfig
from dlas.engine import crash
from dlas.engine.compiling import Compilation, CompilationError, compile_networks, section_of
from dlas.engine.tuning import Plan, measuring, search, tune
from dlas.engine.tuning.measuring import Speed
from dlas.engine.tuning.patience import TookTooLongError, at_most
from dlas.engine.tuning.report import render, write_include
from dlas.engine.tuning.search import pays_back
from dlas.engine.tuning.settings import Setting, compile_settings
from dlas.errors import ConfigurationError
from dlas.observe.console import LOGGER, LogFile
from runs import assert_same_tensors, batches, checkpoint_tensors, configure, rows, trainer

CPU = torch.device("cpu")
EAGER = Setting(4, "fp32", "contiguous", 0)
TRACED = "compile={backend: eager}"  # as for compiling, and torch runs what was traced: no compiler is needed


@pytest.fixture(autouse=True)
def _anew():
    yield
    torch.compiler.reset()


@pytest.fixture
def told(monkeypatch):
    """What is logged."""
    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lambda text, *given: lines.append(text % given))
    monkeypatch.setattr(LOGGER, "warning", lambda text, *given: lines.append("warning: " + text % given))
    return lines


# ---------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_training_is_the_same_one_with_the_same_names(tmp_path, told, backend):
    overrides = ("networks.generator.dropout=0", "train.niter=4")
    eager = trainer(tmp_path, toys.PSNR, *overrides, "name=eager")
    run = trainer(tmp_path, toys.PSNR, *overrides, "name=compiled", f"compile={{backend: {backend}}}")
    eager.run()
    assert eager.compilation.count == 0
    run.run()
    assert run.compilation.count == 1  # neither the first iteration, which is counted, nor validation is compiled
    assert [each for each in told if "compiled: 1 graph in" in each and each.endswith("no recompilations")]
    for one, other in zip(rows(eager.folder.path, "train"), rows(run.folder.path, "train"), strict=True):
        assert one["generator/pix"] == pytest.approx(other["generator/pix"], rel=1e-5)
    tensors, others = (checkpoint_tensors(each.folder.path / "checkpoints/4") for each in (eager, run))
    assert tensors.keys() == others.keys()
    assert all(torch.allclose(value, others[key], atol=1e-5) for key, value in tensors.items())
    assert run.work.of_sample == eager.work.of_sample != {}


def test_a_sitting_that_goes_on_compiles_its_first_iteration_too(tmp_path):
    options = ("networks.generator.dropout=0", "train.niter=3", TRACED)
    assert trainer(tmp_path, toys.PSNR, *options).run().step == 3
    for more, count in ((), 1), (("steps.generator.losses.pix.weight=2",), 0):  # another file's arithmetic is counted anew
        run = trainer(tmp_path, toys.PSNR, *options, "train.niter=4", *more)
        run._restore()
        run.iterate(batches(run, 1)[0])
        assert run.compilation.count == count


@pytest.mark.slow
def test_a_compiled_training_that_is_stopped_and_goes_on_gives_the_bits_of_one_that_is_not(tmp_path):
    options = ("compile=true", "train.lr_scheme={type: constant}")  # with dropout, which draws others in compiled code
    whole = trainer(tmp_path, toys.PSNR, *options, "train.niter=4", "name=whole").run().folder
    trainer(tmp_path, toys.PSNR, *options, "train.niter=2", "name=parts").run()
    parts = trainer(tmp_path, toys.PSNR, *options, "train.niter=4", "name=parts").run().folder
    assert_same_tensors(whole / "checkpoints/4", parts / "checkpoints/4")


def test_evaluation_is_compiled_if_that_is_asked_for(tmp_path):
    run = trainer(tmp_path, toys.PSNR, "train.niter=1", "compile={backend: eager, evaluation: true}")
    run.run()
    assert run.compilation.count > 0


def test_only_the_networks_that_are_named_are_compiled(tmp_path):
    run = trainer(tmp_path, toys.GAN, "train.niter=3", "compile={backend: eager, networks: [discriminator]}")
    run.run()
    words = run.compilation.summary()
    assert len(words) == 1
    assert words[0].startswith("network discriminator compiled: 2 graphs")  # with weights that are trained, and that are not


def test_a_bad_update_is_looked_into_without_compiled_code(tmp_path, monkeypatch):
    seen = []

    def diagnose(step: Any, parts: Any, contexts: Any, written: Any) -> None:
        layer = contexts[0].networks["generator"].first
        handle = layer.register_forward_hook(lambda *given: seen.append("hook"))  # compiled code would pass it over
        step._inject(dict(parts[0].state), contexts[0])
        handle.remove()
        raise RuntimeError("enough")

    monkeypatch.setattr(crash, "diagnose", diagnose)
    run = trainer(tmp_path, toys.PSNR, TRACED, "logger.efficiency=false", "train.health={non_finite: skip}")
    first, second = batches(run, 2)
    run.iterate(first)
    second["lq"][0] = torch.nan
    run.iterate(second)
    assert run.compilation.count == 1
    run._attend_to_health(wait=True)
    assert seen == ["hook"]


def test_spread_networks_are_not_compiled(tmp_path):
    config = configure(tmp_path, toys.PSNR, "compile=true")
    with pytest.raises(ConfigurationError, match="compile: true is not possible with 'strategy: fsdp'"):
        compile_networks(config, {"net": nn.Linear(1, 1)}, CPU, whole=False)


# ---------------------------------------------------------------------------------------------------------------- the file


def test_true_and_an_empty_section_are_the_same_and_null_is_none(tmp_path):
    assert section_of(configure(tmp_path, toys.PSNR, "compile=true")) == CompileConfig()
    assert section_of(configure(tmp_path, toys.PSNR, "compile={}")) == CompileConfig()
    assert section_of(configure(tmp_path, toys.PSNR, "compile=null")) is None
    assert section_of(configure(tmp_path, toys.PSNR)) is None


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{networks: [generatr]}", "no network is called 'generatr'"),
        ("{networks: []}", "no network is compiled"),
        ("{backend: eager, mode: max-autotune}", "the backend 'eager' has no modes"),
        ("{fullgrph: true}", "did you mean 'fullgraph'"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, section, words):
    with pytest.raises(ConfigurationError, match=words):
        configure(tmp_path, toys.PSNR, f"compile={section}")


# ------------------------------------------------------------------------------------------------------------- what is told


class Branching(nn.Module):
    """Cannot be traced in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) -> (B, 2)."""
        y = self.layer(x)
        if y.sum() > 1e9:
            y = y + 1
        return self.layer(y)


class Small(nn.Module):
    """One layer; what torch.nn has itself is not compiled when it is all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) -> (B, 2)."""
        return self.layer(x)


def compiled(network: nn.Module, device: torch.device = CPU, **options: Any) -> Compilation:
    return Compilation(CompileConfig(**{"backend": "eager", **options}), {"net": network, "other": nn.Linear(1, 1)}, device)


def test_graph_breaks_are_told_with_their_place_and_reason(told):
    network = Branching()
    line = Branching.forward.__code__.co_firstlineno + 3
    compilation = compiled(network)
    network(torch.ones(3, 2))
    compilation.end_iteration()
    (words,) = [each for each in told if "compiled:" in each]
    assert "network net compiled: 2 graphs in" in words
    assert "1 graph break:" in words
    assert f"{__file__}:{line}: Data-dependent branching: Detected" in words
    before = len(told)
    network(torch.ones(3, 2))
    compilation.end_iteration()
    assert len(told) == before
    assert compilation.figures() == {}


def test_recompilations_are_counted_and_told_with_the_guard_that_failed(told):
    network = Small()
    compilation = compiled(network)
    for size in (3, 4, 5):  # from the second size on the code is for all
        network(torch.ones(size, 2))
        compilation.end_iteration()
    (words,) = [each for each in told if "compiled again" in each]
    assert "(recompilation 1, " in words
    assert "size mismatch at index 0. expected 3, actual 4" in words
    assert compilation.figures() == {"compile/recompilations": 1.0}
    assert compilation.figures() == {}
    (words,) = compilation.summary()
    assert "net compiled: 2 graphs" in words
    assert words.endswith("1 recompilation")


def test_a_network_of_which_nothing_is_compiled_is_told():
    network = nn.Linear(2, 2)
    compilation = compiled(network)
    network(torch.ones(3, 2))
    assert compilation.summary() == ["network net: torch found nothing in it that it compiles"]


def test_reaching_torchs_limit_is_a_warning_with_what_to_do(told):
    network = Small()
    compilation = compiled(network, dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (3, 4, 5, 6):
            network(torch.ones(size, 2))
            compilation.end_iteration()
    (words,) = [each for each in told if each.startswith("warning")]
    assert "network net: torch has compiled so many versions" in words
    assert "expected 4, actual 5" in words
    assert "dynamic: true" in words


def test_what_cannot_be_compiled_is_an_error_in_a_line_and_its_trace_is_in_the_log(tmp_path):
    def broken(graph: Any, inputs: Any) -> Any:
        raise NotImplementedError("no such instruction\nand more")

    torch._dynamo.register_backend(broken, "test_broken")
    network = Small()
    compiled(network, backend="test_broken")
    with LogFile(tmp_path / "train.log"), pytest.raises(CompilationError) as caught:
        network(torch.ones(3, 2))
    assert str(caught.value) == (
        "network 'net' cannot be compiled: NotImplementedError: no such instruction. "
        "Leave it out: 'compile: {networks: [other]}'"
    )
    assert 'raise NotImplementedError("no such' in (tmp_path / "train.log").read_text()


def test_a_compiler_that_torch_does_not_have_is_refused():
    with pytest.raises(ConfigurationError, match=r"torch has no compiler 'inductr' here; it has: .*inductor"):
        compiled(Small(), backend="inductr")


def test_in_one_piece_or_not_at_all(tmp_path):
    network = Branching()
    compiled(network, fullgraph=True)
    with pytest.raises(CompilationError, match=r"Data-dependent branching: .*test_compiling.py:\d+\)\. Leave it out"):
        network(torch.ones(3, 2))


def test_an_error_of_the_network_itself_is_that_error():
    network = Small()
    compiled(network)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.ones(3, 3))


def test_records_of_torch_that_somebody_asked_for_are_shown_still(told):
    from dlas.engine import compile_records

    logger = torch._logging.getArtifactLogger("torch._dynamo.symbolic_convert", "graph_breaks")
    compile_records.listen()
    readers = [each for each in logger.filters if isinstance(each, compile_records._Reader)]
    assert len(readers) == 1
    record = logger.makeRecord(logger.name, logging.DEBUG, "", 0, "Graph break in user code at a.py:3\nReason: b", (), None)
    assert compile_records._Reader(shows=True).filter(record)
    assert not compile_records._Reader(shows=False).filter(record)
    assert compile_records.take()[1] == [compile_records.Break("a.py:3", "b")]


def test_without_cuda_graphs_their_modes_are_a_warning(told):
    compiled(Small(), mode="reduce-overhead")
    assert [each for each in told if each.startswith("warning: compile.mode: reduce-overhead: CUDA graphs do nothing")]


def test_with_cuda_graphs_iterations_are_marked_and_results_are_copies(monkeypatch):
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    network = nn.Identity()
    compilation = compiled(network, torch.device("cuda"), mode="reduce-overhead")
    x = torch.ones(3, 2)
    compilation.begin_iteration()
    result = network(x)
    assert result.equal(x)
    assert result.data_ptr() != x.data_ptr()  # the next iteration writes over what is in the graph's memory
    network(x)
    assert len(marks) == 1
    compilation.section.evaluation = True
    with compilation.evaluating():
        network(x), network(x)  # each picture is an iteration of its own
    assert len(marks) == 3


# ------------------------------------------------------------------------------------------------------------------- tuning


class Machine:
    """Speeds by whether it is compiled, with noise; starting takes `start` seconds where it is."""

    def __init__(self, eager: float, compiled: float | Exception, start: float) -> None:
        self.speeds = {False: eager, True: compiled}
        self.start = start
        self.calls = 0

    def __call__(self, config: Config, device: torch.device, seconds: float, iteration: int) -> Speed:
        self.calls += 1
        speed = self.speeds[bool(config.compile)]
        if isinstance(speed, Exception):
            raise speed
        return Speed(speed * (1 + 0.01 * (self.calls % 3)), None, self.start if config.compile else 0.0)


@pytest.fixture
def found(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "forecast", lambda config: 1000)
    monkeypatch.setattr(search, "heaviest_iteration", lambda config: 0)

    def run(machine: Machine, *overrides: str, patience: float = 600.0) -> Any:
        config = configure(tmp_path, toys.PSNR, "train.niter=10000", *overrides)  # of 4 samples each
        plan = Plan(rounds=6, vary=("compile",), patience=patience)
        return tune(config, plan, tmp_path / "t.json", measure=machine)

    return run


def test_it_is_taken_where_it_is_faster_and_the_run_is_long_enough(found, tmp_path):
    tuned = found(Machine(10.0, 15.0, start=600.0))  # 4000 s against 2667 s
    assert tuned.setting == Setting(4, "fp32", "contiguous", 0, compiled=True)
    text = render(tuned, 4)
    assert "default: compiling takes 600.0 s at the start of a run" in text
    words = "Chosen: fp32, contiguous, micro-batches of 4, 0 workers, compiled (default), "
    assert re.search(re.escape(words) + r"1\.(49|5\d) times as fast as not compiled\.", text)
    write_include(tmp_path / "out.yml", tmp_path / "options.yml", tuned)
    assert section_of(load(tmp_path / "out.yml")) == CompileConfig()


@pytest.mark.parametrize(
    "machine",
    [Machine(10.0, 15.0, start=1400.0), Machine(10.0, 10.0, start=0.0), Machine(10.0, 5.0, start=0.0)],
    ids=["the run is too short", "no faster", "slower"],
)
def test_it_is_left_where_it_does_not_pay(found, machine, tmp_path):
    tuned = found(machine)
    assert tuned.setting == EAGER
    write_include(tmp_path / "out.yml", tmp_path / "options.yml", tuned)
    assert yaml.safe_load((tmp_path / "out.yml").read_text())["compile"] is False


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("no C++ compiler\nand more"), "RuntimeError: no C++ compiler"),
        (CompilationError("generator", "not done after 600 s", []), "not done after 600 s"),
    ],
    ids=["an error", "too long"],
)
@pytest.mark.parametrize("own", ["compile=false", "compile=true"])
def test_where_it_fails_the_reason_is_told_and_the_rest_goes_on(found, error, words, own):
    machine = Machine(10.0, error, start=0.0)
    tuned = found(machine, own)
    assert tuned.setting == EAGER
    assert f"default: does not compile: {words}\n" in render(tuned, 4)
    calls = machine.calls
    assert calls == 2 + 2 + 1  # alone there is nothing to compare with: two rounds of each stage, and one attempt
    found(machine, own)
    assert machine.calls == calls  # what failed is on record
    found(machine, own, patience=900.0)
    assert machine.calls == calls + 1  # with more patience it may go well


def test_a_file_that_is_compiled_may_be_told_not_to_be_and_keeps_its_section(found, tmp_path):
    assert found(Machine(15.0, 10.0, start=1.0), "compile=true").setting == EAGER
    section = "compile={networks: [generator], dynamic: true, mode: max-autotune}"
    tuned = found(Machine(10.0, 15.0, start=1.0), section)
    assert (tuned.setting.compiled, tuned.setting.mode) in {(True, "max-autotune"), (True, "default")}
    config = tuned.setting.applied(configure(tmp_path, toys.PSNR, section))
    assert (config.compile.networks, config.compile.dynamic) == (["generator"], True)
    assert config.compile.mode == tuned.setting.mode


def test_cuda_graphs_are_looked_at_where_there_are_any():
    modes = [s.mode for s in compile_settings(EAGER, EAGER, torch.device("cuda"), ["compile"]) if s.compiled]
    assert modes == ["default", "reduce-overhead"]
    assert [s.mode for s in compile_settings(EAGER, EAGER, CPU, ["compile"]) if s.compiled] == ["default"]
    assert compile_settings(EAGER, EAGER, CPU, []) == [EAGER]


def test_a_measurement_is_of_compiled_code_and_gives_up_in_time(tmp_path):
    config = configure(tmp_path, toys.PSNR, TRACED)
    with pytest.raises(CompilationError, match=r"not done after 0\.02 s"):
        measuring.measure(config, CPU, 0.01, 0, patience=0.02)
    speed = measuring.measure(config, CPU, 0.01, 0)  # nothing is left half done
    assert speed.start > 0.01
    assert speed.samples_per_second > 0


def test_what_takes_too_long_is_interrupted_whatever_it_handles():
    def stubborn() -> None:
        while True:
            try:
                time.sleep(30)
            except Exception:
                continue

    start = time.monotonic()
    with pytest.raises(TookTooLongError, match=r"not done after 0\.1 s"), at_most(0.1):
        stubborn()
    assert time.monotonic() - start < 10
    with at_most(0.05):
        pass
    time.sleep(0.1)  # and nothing comes afterwards


def test_what_compiling_takes_is_set_against_what_the_run_saves():
    def row(speed: float, start: float = 0.0) -> search.Row:
        return search.Row(EAGER, dict.fromkeys(range(6), speed), start=start)

    assert pays_back(row(10.0), row(20.0, start=49.0), samples=1000)  # 100 s against 50 s
    assert not pays_back(row(10.0), row(20.0, start=51.0), samples=1000)
