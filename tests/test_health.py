"""Bad updates: found in every form, never made, told of, and followed by what the policy says, on all ranks alike."""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import toys
from dlas.config.schema import EmaConfig, HealthConfig, InjectorConfig, LossConfig, StepConfig
from dlas.context import Context
from dlas.engine import trainer as trainer_module
from dlas.engine.averages import Averages
from dlas.engine.cutting import Cutting
from dlas.engine.distributed import Ranks
from dlas.engine.ema import ModelEma
from dlas.engine.health import HealthMonitor, UpdateGuard
from dlas.engine.health.buffers import BufferKeeper
from dlas.engine.health.policy import StepHealth
from dlas.engine.health.spikes import SpikeScore
from dlas.engine.iteration import IterationRunner
from dlas.engine.meter import Meter
from dlas.engine.precision import Precision
from dlas.engine.step import TrainingStep
from dlas.engine.trainer import Trainer
from dlas.errors import ConfigurationError, TrainingError
from dlas.injectors.base import State
from dlas.losses.base import Loss
from dlas.optim import build_optimizer, build_schedule
from dlas.registry import ARCHS, LOSSES, OPTIMIZERS
from dlas.types import StateIn
from runs import assert_same_tensors, batches, configure, rows, trainer

CPU = torch.device("cpu")


class _Overflowing(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


@LOSSES.register("toy_faulty")
class FaultyLoss(Loss):
    """Mean absolute difference (from 0 without `real`), with a fault in batches that hold certain samples."""

    def __init__(
        self,
        *,
        fake: StateIn,
        real: StateIn | None = None,
        positions: list[int] | None = None,
        fault: Literal["nan", "inf", "gradient", "spike"] = "nan",
    ) -> None:
        super().__init__()
        self.fake, self.real = fake, real
        self.positions = set(positions or [])
        self.fault = fault

    def forward(self, state: State, context: Context) -> Tensor:
        """(,)."""
        fake = state[self.fake]
        bad = bool(self.positions & set(context.positions))
        if bad and self.fault == "gradient":
            fake = _Overflowing.apply(fake)
        value = (fake.float() - (state[self.real] if self.real else 0)).abs().mean()
        if bad and self.fault == "spike":
            return value * 1000
        return value + float(self.fault) if bad and self.fault != "gradient" else value


@ARCHS.register("ToyBuffered")
class Buffered(nn.Module):
    """A discriminator with running statistics and a spectral norm; both change in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 4, 4))
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1)."""
        return self.last(torch.relu(self.norm(self.first(x)))).mean(dim=(2, 3))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8),)


def psnr(positions: list[int], fault: str = "nan") -> str:
    """The toy run with a fault at these places; batch b holds the places 4 b to 4 b + 3."""
    return toys.PSNR.replace(
        "{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}",
        f"{{type: toy_faulty, weight: 1, real: hq, fake: gen, positions: {positions}, fault: {fault}}}",
    )


def gan(step: str, positions: list[int], fault: str = "nan") -> str:
    """A GAN with buffers in the discriminator, and a second loss with a fault in one of its steps."""
    fault_here = f"positions: {positions}, fault: {fault}}}\n"
    if step == "generator":
        head, tail = toys.GAN.split("train: {niter: 8}")
        text = f"{head}      faulty: {{type: toy_faulty, weight: 1, real: hq, fake: gen, {fault_here}train: {{niter: 8}}{tail}"
    else:
        logits = "      logits: {type: generator, generator: discriminator, in: hq, out: logits}\n"
        losses = f"    losses:\n      faulty: {{type: toy_faulty, weight: 0.1, fake: logits, {fault_here}"
        head, tail = toys.GAN.split("    losses:\n", 1)
        text = f"{head}{logits}{losses}{tail}"
    return text.replace("ToyDiscriminator", "ToyBuffered")


def everything(run: Trainer) -> dict[str, Tensor]:
    """A copy of all that an update may change."""
    found: dict[str, Tensor] = {}
    for name, network in run.networks.items():
        found.update({f"{name}.{key}": value for key, value in network.state_dict().items()})
    for name, ema in run.averages.main.items():
        found.update({f"{name}.ema.{key}": value for key, value in ema.state_dict().items()})
    for step in run.steps:
        names = {p: number for number, p in enumerate(step.parameters)}
        for parameter, entries in step.optimizer.state.items():
            found.update({f"{step.name}.{names[parameter]}.{key}": torch.as_tensor(v) for key, v in entries.items()})
    return {key: value.detach().clone() for key, value in found.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of what is no longer the same, bit for bit."""
    return {
        key
        for key in before.keys() | after.keys()
        if key not in before or key not in after or not before[key].equal(after[key])
    }


def with_lag(monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    """Trainers look `lag` iterations later, as on a GPU."""
    monkeypatch.setattr(trainer_module, "HealthMonitor", partial(HealthMonitor, lag=lag))


# ---- what is bad, and what a bad update leaves as it was ---------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(("fault", "kind"), [("nan", "loss"), ("inf", "loss"), ("gradient", "gradient")])
@pytest.mark.parametrize("step", ["discriminator", "generator"])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_update_leaves_every_bit_as_it_was(tmp_path, monkeypatch, lag, fault, kind, step, first):
    """Weights, running statistics, spectral vectors, moments, averages; of the bad step and of those after it."""
    with_lag(monkeypatch, lag)
    bad = 0 if first else 2
    run = trainer(tmp_path, gan(step, [4 * bad + 1], fault), "train.ema.rate=0.5")
    data = batches(run, bad + 3)
    for batch in data[:bad]:
        run.iterate(batch)
    before = everything(run)
    run.iterate(data[bad])
    after = everything(run)
    found = run.health.bad_update()
    assert (found is None) == (lag == 1)
    if lag:
        middle = changed(after, everything(run))
        run.iterate(data[bad + 1])  # held: nobody has looked yet
        assert not middle
        assert not changed(after, everything(run))
        found = run.health.bad_update()
    assert (found.step.name, found.iteration, found.kind) == (step, bad, kind)
    assert found.parts[0].positions == list(range(4 * bad, 4 * bad + 4))
    assert {"lq", "hq"} <= found.parts[0].state.keys() - {"gen", "faulty"}
    names = changed(before, after)
    if step == "discriminator":
        assert not names
    else:  # the discriminator's own step came before, and was good
        assert names
        # ... and ran the generator, which counts its calls.
        assert {name for name in names if not name.startswith("discriminator")} == {"generator.calls"}
    run.health.go_on()
    run.iterate(data[bad + 2])
    assert run.health.bad_update(wait=True) is None
    assert any(name.startswith("generator.") for name in changed(after, everything(run)))


def test_a_bad_step_is_undone_to_where_the_step_before_it_left_the_buffers(tmp_path):
    """Iterating with a bad generator step leaves what iterating without that step leaves."""
    states = []
    for text in (
        gan("generator", [5]),
        gan("generator", []).replace("    training: generator", "    training: generator\n    before: 1"),
    ):
        run = trainer(tmp_path, text)
        for batch in batches(run, 2):
            run.iterate(batch)
        states.append(everything(run))
    same = {key for key in states[0] if key.startswith("discriminator") and ".ema." not in key}
    assert {"discriminator.norm.running_var", "discriminator.first.parametrizations.weight.0._u"} <= same
    assert not {key for key in same if not states[0][key].equal(states[1][key])}


@pytest.mark.parametrize("lag", [0, 1])
def test_one_bad_micro_batch_holds_the_whole_update(tmp_path, monkeypatch, lag):
    with_lag(monkeypatch, lag)
    run = trainer(tmp_path, psnr([6]), "train.mega_batch_factor=4")
    data = batches(run, 2)
    run.iterate(data[0])
    before = everything(run)
    run.iterate(data[1])
    assert not changed(before, everything(run))
    bad = run.health.bad_update(wait=True)
    assert [part.positions for part in bad.parts] == [[4], [5], [6], [7]]


OPTIONS = {"sgd": {"momentum": 0.9}, "lars": {"momentum": 0.9}}
EVERY_OPTIMIZER = [
    *sorted(OPTIMIZERS.entries().keys() - toys.NEED_APEX),
    "nadam",
    "RAdam",
    "Adagrad",
    "RMSprop",
    "Adamax",
    "Rprop",
    "ASGD",
    "Adadelta",
    "Adafactor",
]


@pytest.mark.parametrize("name", EVERY_OPTIMIZER)
@pytest.mark.parametrize("bad", [0, 2])
def test_every_optimizer_goes_on_as_if_a_held_update_had_not_been(name, bad):
    """Held on the host at once, or by a flag on the device of which the host learns later: both as if nothing had been."""
    results = []
    for mode in ("left out", "at once", "latched"):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 1))
        optimizer = build_optimizer(name, {"net": network}, {"lr": 0.01, **OPTIONS.get(name, {})})
        latch = torch.zeros(()) if mode == "latched" else None
        guard = UpdateGuard(optimizer, None, None, latch, Ranks(), CPU)
        for number in range(5):
            if number == bad and mode == "left out":
                continue
            guard.begin("")
            loss = network(torch.full((2, 3), float(number + 1))).square().mean()
            if number == bad:
                loss = loss * torch.nan
            guard.watch(loss.detach())
            loss.backward()
            guard.update([p.grad for p in network.parameters()], None)
            optimizer.zero_grad()
            if number == bad and latch is not None:
                assert float(latch) > 0
                guard.holder.undo()
                latch.zero_()
            elif latch is not None:
                guard.holder.settle()
        state = [list(optimizer.state[p].items()) for p in network.parameters()]
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        results.append(([p.detach() for p in network.parameters()], state, groups))
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0][0], other[0], strict=True))
        for one, two in zip(results[0][1], other[1], strict=True):
            assert [key for key, _ in one] == [key for key, _ in two]
            assert all(
                torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                for (_, a), (_, b) in zip(one, two, strict=True)
                if a is not None
            )
        assert results[0][2] == other[2]


@pytest.mark.parametrize("optimizer", ["adam", "lamb", "lars"])
def test_with_a_lag_the_next_iteration_is_held_too_and_nothing_else_differs(tmp_path, monkeypatch, optimizer):
    """One bad batch and a lag of one ends bit for bit where two bad batches without a lag end."""
    ends = []
    for lag, positions in ((0, [8, 12]), (1, [8])):
        with_lag(monkeypatch, lag)
        overrides = [f"name=lag{lag}", f"steps.generator.optimizer={optimizer}", "logger.print_freq=100", "train.val_freq=0",
                     "logger.save_checkpoint_freq=100", "networks.generator.dropout=0", "train.ema.rate=0.5"]  # fmt: skip
        run = trainer(tmp_path, psnr(positions), *overrides)
        run.run()
        ends.append(everything(run))
        assert [row["generator/skipped"] for row in rows(tmp_path / f"lag{lag}", "train")] == [2.0]
    # On the device the average takes a rate that is a number there, in three operations instead of one.
    assert {name for name in changed(*ends) if ".ema." not in name} == set()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("held", [0.0, 3.0])
def test_an_average_obeys_a_flag_on_the_device(held):
    """Large tensors and small ones, floating-point ones and counters."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1200, 900), nn.BatchNorm1d(900))
    ema, expected = ModelEma(network, rate=0.75), ModelEma(network, rate=0.75)
    with torch.no_grad():
        for p in network.parameters():
            p += torch.randn_like(p)
        network[1].num_batches_tracked += 1
    ema.update(1, torch.tensor(held))
    expected.update(1, held > 0)
    for (name, value), other in zip(ema.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6 if not held else 0, atol=1e-6 if not held else 0, msg=name)


# ---- fp16 -------------------------------------------------------------------------------------------------------------------


def test_an_overflow_of_scaled_gradients_is_no_event_until_no_scale_is_left(tmp_path):
    run = trainer(tmp_path, psnr(list(range(4, 12)), "gradient"), "precision=fp16", "train.niter=1000")
    data = batches(run, 3)
    run.iterate(data[0])
    before, scale = everything(run), run.steps[0].scaler.get_scale()
    run.iterate(data[1])
    assert run.health.bad_update(wait=True) is None
    assert run.steps[0].scaler.get_scale() == scale / 2
    assert {n for n in changed(before, everything(run)) if "ema" not in n} == {"generator.calls"}
    run.steps[0].scaler.update(0.5)
    run.iterate(data[2])
    assert run.health.bad_update(wait=True).kind == "gradient"


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_a_loss_that_is_not_finite_is_an_event_under_fp16_too(tmp_path, monkeypatch, lag, optimizer):
    with_lag(monkeypatch, lag)
    run = trainer(tmp_path, psnr([4], "inf"), "precision=fp16", f"steps.generator.optimizer={optimizer}")
    data = batches(run, 2)
    run.iterate(data[0])
    before = everything(run)
    run.iterate(data[1])  # a constant is added: the gradient is finite
    assert run.health.bad_update(wait=True).kind == "loss"
    assert not changed(before, everything(run))


# ---- policies ---------------------------------------------------------------------------------------------------------------


def test_skipping_goes_on_counts_and_keeps_the_averages_of_the_good(tmp_path, caplog):
    trainer(tmp_path, psnr([4]), "train.val_freq=0").run()
    found = rows(tmp_path / "toy", "train")
    assert [row.get("generator/skipped") for row in found] == [1.0, None, None, None]
    assert all(row["generator/pix"] > 0 for row in found)
    run = trainer(tmp_path, psnr([]), "name=other", "train.val_freq=0", "logger.print_freq=1")
    run.run()
    assert rows(tmp_path / "other", "train")[0]["generator/pix"] == found[0]["generator/pix"]
    assert caplog.text.count("iteration 2: the loss is not finite (generator/pix nan") == 1
    assert "step 'generator': 1 bad updates in the run" in caplog.text


def test_too_many_in_a_row_end_the_run_with_its_good_state_saved(tmp_path):
    text = psnr(list(range(8, 32)))
    with pytest.raises(TrainingError, match=r"4 bad updates in a row \(max_consecutive 3\).*saved.*learning rate"):
        trainer(tmp_path, text, "train.health.max_consecutive=3").run()
    assert (tmp_path / "toy/checkpoints/latest").read_text() == "6"
    trainer(tmp_path, psnr([]), "name=good", "train.niter=2", "train.lr_scheme={type: one_cycle, total_steps: 8}").run()
    assert_same_tensors(tmp_path / "toy/checkpoints/6", tmp_path / "good/checkpoints/2",
                        ["generator.safetensors:first.weight", "generator.ema.safetensors:first.weight"])  # fmt: skip


def test_lines_are_few(tmp_path, caplog):
    trainer(tmp_path, psnr(list(range(0, 80, 8))), "train.niter=20", "train.val_freq=0").run()
    assert caplog.text.count("the loss is not finite") == 5
    assert "step 'generator': 10 bad updates in the run" in caplog.text


def test_a_step_has_its_own_policy(tmp_path):
    text = gan("generator", [9]).replace("train: {niter: 8}", "train: {niter: 8, health: {non_finite: skip}}")
    with pytest.raises(TrainingError, match=r"'generator', iteration 3: .*the policy is to stop"):
        trainer(tmp_path, text, "steps.generator.health={non_finite: stop}").run()
    assert (tmp_path / "gan/checkpoints/latest").read_text() == "3"
    assert trainer(tmp_path, text, "steps.discriminator.health={non_finite: stop}", "name=other").run().step == 8


SCHEDULES = [
    "{type: one_cycle}", "{type: cosine}", "{type: MultiStepLR, gen_lr_steps: [3, 5], lr_gamma: 0.5}",
    "{type: ExponentialLR, gamma: 0.9}", "{type: OneCycleLR, max_lr: 1e-2}", "{type: constant}",
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_reduced_rate_is_that_of_the_schedule_times_the_factor(tmp_path, schedule):
    common = [f"train.lr_scheme={schedule}", "logger.print_freq=1", "train.val_freq=0", "train.warmup_iter=4"]
    trainer(tmp_path, psnr([4, 16]), *common, "train.health={non_finite: reduce_lr, lr_factor: 0.25}").run()
    trainer(tmp_path, psnr([]), *common, "name=other").run()
    ratios = [
        a["generator/lr"] / b["generator/lr"]
        for a, b in zip(rows(tmp_path / "toy", "train"), rows(tmp_path / "other", "train"), strict=True)
    ]
    assert ratios == pytest.approx([1, 1, 0.25, 0.25, 0.25, 0.0625, 0.0625, 0.0625])


def test_reductions_and_rollbacks_have_limits(tmp_path):
    with pytest.raises(TrainingError, match=r"reduced 2 times already"):
        trainer(
            tmp_path, psnr(list(range(0, 80, 8))), "train.niter=20", "train.health={non_finite: reduce_lr, max_reductions: 2}"
        ).run()
    with pytest.raises(TrainingError, match=r"rolled back 2 times already"):
        trainer(tmp_path, psnr(list(range(4, 80))), "name=other", "train.health={non_finite: rollback, max_rollbacks: 2}").run()


@pytest.mark.parametrize(
    "schedule", ["{type: one_cycle}", "{type: ExponentialLR, gamma: 0.9}", "{type: OneCycleLR, max_lr: 1e-2}"]
)
def test_a_rollback_goes_on_from_the_checkpoint_with_the_data_that_follow(tmp_path, monkeypatch, schedule):
    common = [f"train.lr_scheme={schedule}", "networks.generator.dropout=0.1"]
    taken: list[tuple[int, int]] = []
    original = Trainer.iterate

    def iterate(self, batch, log_gradients=False):
        taken.append((self.progress.step, batch["positions"][0]))
        return original(self, batch, log_gradients)

    monkeypatch.setattr(Trainer, "iterate", iterate)
    result = trainer(tmp_path, psnr([17]), *common, "train.health.non_finite=rollback").run()  # the fifth batch
    assert result.step == 8
    assert taken == [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16), (3, 20), (4, 24), (5, 28), (6, 32), (7, 36)]
    found = rows(tmp_path / "toy", "train")
    assert [(row["step"], row["samples"], row.get("rollbacks")) for row in found] == [
        (2, 8, None),
        (4, 24, 1),
        (6, 32, 1),
        (8, 40, 1),
    ]
    assert [row["step"] for row in rows(tmp_path / "toy", "val")] == [4, 8]
    # The same from a process that starts at that checkpoint, told to go on behind the bad batch.
    trainer(tmp_path, psnr([]), *common, "name=other", "train.niter=8").run()
    other = tmp_path / "other/checkpoints"
    state = json.loads((other / "3/state.json").read_text())
    state["progress"]["samples"] = 20
    monkeypatch.setattr(trainer_module.checkpoint, "find_fault", lambda path: None)
    (other / "3/state.json").write_text(json.dumps(state))
    trainer(tmp_path, psnr([]), *common, "name=other", f"path.resume_state={other}/3").run()
    assert_same_tensors(tmp_path / "toy/checkpoints/8", tmp_path / "other/checkpoints/8")


def test_a_rollback_before_the_first_checkpoint_goes_to_the_start(tmp_path):
    run = trainer(tmp_path, psnr([5]), "train.health.non_finite=rollback")
    assert run.run().step == 8
    assert run.progress.samples == 40
    assert (tmp_path / "toy/checkpoints/0").is_dir()


def test_weights_that_are_not_finite_are_what_a_rollback_mends(tmp_path, monkeypatch):
    original = Trainer.iterate

    def iterate(self, batch, log_gradients=False):
        if batch["positions"][0] == 16:
            self.networks["generator"].last.bias.data.fill_(torch.nan)
        return original(self, batch, log_gradients)

    monkeypatch.setattr(Trainer, "iterate", iterate)
    assert trainer(tmp_path, psnr([]), "train.health.non_finite=rollback").run().step == 8


# ---- exact after a restart --------------------------------------------------------------------------------------------------

CASES = {
    "skip": (psnr([4, 17, 20]), ["train.health.non_finite=skip"]),
    "gan": (gan("generator", [4, 17, 20]), ["train.ema.rate=0.9"]),
    "reduce_lr": (psnr([4, 17]), ["train.health.non_finite=reduce_lr"]),
    "rollback": (psnr([9, 17, 29], "gradient"), ["train.health.non_finite=rollback"]),
    "rollback, torch's schedule": (
        psnr([17]), ["train.health.non_finite=rollback", "train.lr_scheme={type: ExponentialLR, gamma: 0.9}"]
    ),
    "spike": (psnr([29], "spike"), ["train.health={spike: skip, spike_window: 8}", "train.niter=12"]),
    "spike, rollback": (psnr([29], "spike"), ["train.health={spike: rollback, spike_window: 8}", "train.niter=12"]),
    "fp16": (psnr([4, 17], "inf"), ["precision=fp16"]),
}  # fmt: skip


class Killed(BaseException):
    """Ends a run where it is, without a chance to save."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kill_at", [3, 5, 6, 8])
def test_a_run_with_events_that_was_killed_ends_as_one_that_was_not(tmp_path, monkeypatch, case, kill_at):
    text, overrides = CASES[case]
    overrides = [*overrides, "logger.save_checkpoint_freq=2", "logger.print_freq=2"]
    whole = trainer(tmp_path, text, *overrides, "name=whole")
    whole.run()
    total = sum(each.total for each in whole.health.history.values()) + whole.progress.rollbacks
    assert total > 0
    original, calls = Trainer.iterate, 0

    def iterate(self, batch, log_gradients=False):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise Killed
        return original(self, batch, log_gradients)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "iterate", iterate)
        with pytest.raises(Killed):
            # Nothing of a killed process writes on.
            trainer(tmp_path, text, *overrides, "name=parts", "checkpoints.background=false").run()
    trainer(tmp_path, text, *overrides, "name=parts").run()
    one, two = tmp_path / "whole", tmp_path / "parts"
    last = (one / "checkpoints/latest").read_text()
    assert_same_tensors(one / "checkpoints" / last, two / "checkpoints" / last)
    first, second = (json.loads((run / "checkpoints" / last / "state.json").read_text()) for run in (one, two))
    first["progress"].pop("seconds"), second["progress"].pop("seconds")
    assert first == second
    assert rows(one, "train") == rows(two, "train")
    assert rows(one, "val") == rows(two, "val")


# ---- spikes -----------------------------------------------------------------------------------------------------------------


def scores(values: Tensor, **options: Any) -> list[bool]:
    """Which of a series of losses spike."""
    settings = {"threshold": 12.0, "size": 100, "loss": True, "gradient": False, "device": CPU, **options}
    score = SpikeScore(**settings)
    return [bool(score.judge("pix", score.values(value, None), torch.tensor(True))) for value in values]


def test_a_spike_is_found_and_clean_noise_is_not_and_a_new_level_is_accepted():
    generator = torch.Generator().manual_seed(0)
    trend = torch.linspace(1, 0.2, 3000)
    noise = torch.exp(0.4 * torch.randn(3000, generator=generator)) * trend
    assert not any(scores(noise))
    spiky = noise.clone()
    spiky[[700, 1500]] *= 50
    assert [i for i, s in enumerate(scores(spiky)) if s] == [700, 1500]
    level = noise.clone()
    level[1000:] *= 50
    found = [i for i, s in enumerate(scores(level)) if s]
    assert found[0] == 1000
    assert 10 < len(found) <= 51
    assert found[-1] < 1052


def test_losses_that_are_on_together_have_a_window_of_their_own_and_values_not_finite_enter_none():
    score = SpikeScore(12.0, 10, loss=True, gradient=True, device=CPU)

    def judge(losses: str, loss: float, norm: float, accepted: bool = True) -> bool:
        values = score.values(torch.tensor(loss), torch.tensor(norm))
        return bool(score.judge(losses, values, torch.tensor(accepted)))

    for number in range(10):
        assert not judge("pix", 1 + 0.01 * number, 1.0)
        assert not judge("pix", torch.nan, 1.0)
        assert not judge("pix", 1000, 1000, accepted=False)
    assert not judge("pix,gan", 100.0, 100.0)
    assert float(score.windows["pix"].count) == 10
    assert judge("pix", 100.0, 1.0)
    assert judge("pix", 1.0, 100.0)
    assert score.read_worst() > 12
    assert score.read_worst() == 0


@pytest.mark.parametrize("lag", [0, 1])
def test_a_spike_is_held_and_its_score_logged(tmp_path, monkeypatch, lag):
    with_lag(monkeypatch, lag)
    text = psnr([4 * 9], "spike")
    run = trainer(
        tmp_path,
        text,
        "train.niter=12",
        "train.health={spike: skip, spike_window: 8}",
        "logger.print_freq=4",
        "train.val_freq=0",
    )
    seen = []
    run.on_bad_update = lambda bad: seen.append((bad.kind, bad.iteration)) or ""
    run.run()
    assert seen == [("spike", 9)]
    found = rows(tmp_path / "toy", "train")
    assert [row.get("generator/skipped") for row in found] == [None, None, 1.0 + lag]
    assert found[2]["generator/spike_score"] > 12 > found[1]["generator/spike_score"] >= 0
    assert found[2]["generator/pix"] < 1


def test_a_row_of_spikes_is_one_reduction():
    health, settings = StepHealth(), HealthConfig(spike="reduce_lr")
    actions = [health.decide("spike", settings, [], 0).action for _ in range(60)]
    assert actions == ["reduce_lr"] + ["skip"] * 59
    health.updated()
    assert health.decide("spike", settings, [], 0).action == "reduce_lr"
    assert health.lr_factor == 0.25


# ---- several ranks ----------------------------------------------------------------------------------------------------------


def test_without_other_ranks_nothing_is_communicated():
    flags = torch.tensor([1.0, 0.0])
    assert Ranks.current() == Ranks(0, 1)
    assert Ranks().any_(flags) is flags


RANK_CASES = [("nan", 0, "loss"), ("inf", 1, "loss"), ("spike", 0, "spike")]


def _rank(rank: int, port: int, folder: str) -> None:
    """Eight iterations of a network that two processes train; in the sixth, the second process has a fault."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for fault, lag, _ in RANK_CASES:
        torch.save(_iterate(rank, fault, lag), Path(folder) / f"{fault}{rank}.pt")
    torch.distributed.destroy_process_group()


def _iterate(rank: int, fault: str, lag: int) -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    networks: dict[str, nn.Module] = {"net": nn.parallel.DistributedDataParallel(network)}
    meter = Meter()
    step = TrainingStep("step", _section([21] if rank == 1 else [], fault), networks, Precision("fp32", CPU), CPU, meter)
    step.schedule = build_schedule({"type": "constant"}, step.optimizer, 8)
    settings = HealthConfig(spike="skip", spike_window=4) if fault == "spike" else HealthConfig()
    health = HealthMonitor([step], {"step": settings}, networks, meter, CPU, lag=lag)
    averages = Averages(EmaConfig(rate=0.5), {"net": network})
    runner = IterationRunner(
        [step], networks, averages, seed=0, cutting=Cutting(), device=CPU, layout=torch.contiguous_format, health=health
    )
    history, events = [], []
    for number in range(8):
        lq, hq = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(10 * number + rank))
        runner.run({"lq": lq, "hq": hq, "positions": [4 * number, 4 * number + 1]}, number)
        bad = health.bad_update()
        if bad is not None:
            events.append((bad.iteration, bad.kind))
            health.go_on()
        weights = torch.cat([p.detach().flatten() for p in network.parameters()])
        running = torch.cat([b.flatten().float() for b in network.buffers()])
        history.append((weights, running, torch.cat([v.flatten().float() for v in averages.main["net"].state_dict().values()])))
    return {"history": history, "events": events}


def _section(positions: list[int], fault: str) -> StepConfig:
    return StepConfig(
        training="net",
        optimizer="adam",
        optimizer_params={"lr": 0.01},
        injectors={"gen": InjectorConfig(type="generator", options={"generator": "net", "in": "lq", "out": "gen"})},
        losses={
            "pix": LossConfig(
                type="toy_faulty", weight=1.0, options={"fake": "gen", "real": "hq", "positions": positions, "fault": fault}
            )
        },
    )


def test_a_fault_in_one_of_two_ranks_makes_both_skip(tmp_path, unused_port):
    torch.multiprocessing.spawn(_rank, (unused_port, str(tmp_path)), nprocs=2)
    for fault, lag, kind in RANK_CASES:
        one, two = (torch.load(tmp_path / f"{fault}{rank}.pt", weights_only=True) for rank in (0, 1))
        assert one["events"] == two["events"] == [(5, kind)]
        for number, (a, b) in enumerate(zip(one["history"], two["history"], strict=True)):
            assert a[0].equal(b[0]), (fault, number)
            held = number == 5 or (lag == 1 and number == 6)
            for here in (one["history"], two["history"]):
                assert all(value.isfinite().all() for value in here[number])
                same = [value.equal(before) for value, before in zip(here[number], here[number - 1], strict=True)]
                assert number == 0 or same == [held] * 3, (fault, number)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_handler_is_called_while_everything_is_as_the_bad_step_found_it(tmp_path):
    run = trainer(tmp_path, psnr([9]), "train.health.non_finite=rollback", "train.mega_batch_factor=2")
    found = []

    def handler(bad):
        found.append((bad.step.name, bad.iteration, [part.positions for part in bad.parts], sorted(bad.parts[0].state)))
        assert [context.step for context in bad.contexts] == [2, 2]
        return "see there"

    run.on_bad_update = handler
    run.run()
    assert found == [("generator", 2, [[8, 9], [10, 11]], ["hq", "lq", "name", "path"])]
    assert "; see there" in (tmp_path / "toy/train.log").read_text()


def test_limits_and_names_are_checked(tmp_path):
    with pytest.raises(ConfigurationError, match="non_finite"):
        configure(tmp_path, toys.PSNR, "train.health.non_finite=off")
    assert configure(tmp_path, toys.PSNR, "train.health.spike=off").train.health.spike == "off"


class _NoReading(TorchDispatchMode):
    """Refuses whatever would wait for the device if there were one."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        names = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
        assert function.overloadpacket.__name__ not in names, f"{function} waits for the device"
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("optimizer", ["adam", "lamb", "lars"])
def test_with_a_lag_nothing_reads_a_number_from_the_device_in_an_iteration(tmp_path, monkeypatch, optimizer):
    with_lag(monkeypatch, 1)
    health = "train.health={spike: skip, spike_window: 4, spike_threshold: 1e6}"
    text = gan("generator", [13])
    run = trainer(tmp_path, text, health, f"steps.generator.optimizer={optimizer}", "steps.generator.clip_grad_eps=1.0")
    data = batches(run, 7)
    for batch in data[:2]:  # the host waits for a parameter's first update
        run.iterate(batch)
    monkeypatch.setattr(run.health, "_look_back", lambda lag: None)
    with _NoReading():
        for batch in data[2:]:
            run.iterate(batch, log_gradients=True)
    monkeypatch.undo()
    assert run.health.bad_update(wait=True).iteration == 3
    assert run.health.history["generator"].skipped == 4  # all that followed


def test_buffers_that_came_went_or_were_replaced_are_as_they_were():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    module[0].register_buffer("unset", None)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    order = list(module.state_dict())
    keeper = BufferKeeper([module])
    keeper.keep()
    module[0].unset = torch.ones(1)
    module[0].running_mean = torch.full((2,), torch.nan)
    module[0].running_var.fill_(torch.inf)
    del module[0].num_batches_tracked
    module[1].register_buffer("new", torch.ones(1))
    keeper.bring_back()
    assert module[0].unset is None
    assert list(module.state_dict()) == order
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())
