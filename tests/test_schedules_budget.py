"""Schedules for budgets that are not known, or of which there are many: closed forms, troughs, plateaus."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import toys
from dlas.errors import ConfigurationError
from dlas.explain.rates import learning_rates
from dlas.optim import build_schedule
from dlas.optim.closed_forms import CyclicTradeoff, Plateau
from runs import assert_same_tensors, configure, rows, trainer

NITER = 100


def series(options: dict[str, Any], steps: range = range(NITER), lr: float = 0.2) -> list[float]:
    opt = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr, "initial_lr": lr}], lr=1.0)
    schedule = build_schedule(options, opt, NITER)
    found = []
    for step in steps:
        schedule.apply(step)
        found.append(opt.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("decay", "shape"),
    [
        ("1-sqrt", lambda p: 1 - math.sqrt(p)),
        ("linear", lambda p: 1 - p),
        ("cosine", lambda p: 0.5 + 0.5 * math.cos(math.pi * p)),
    ],
)
def test_wsd_goes_up_stays_and_comes_down(decay, shape):
    found = series({"type": "wsd", "warmup_steps": 10, "decay_share": 0.3, "decay": decay, "final_factor": 0.1})
    assert found[:10] == pytest.approx([0.02 * (s + 1) for s in range(10)])
    assert found[10:71] == pytest.approx([0.2] * 61)
    assert found[70:] == pytest.approx([0.2 * (0.1 + 0.9 * shape((s - 70) / 30)) for s in range(70, 100)])
    assert series({"type": "warmup_stable_decay", "decay_share": 0.0}) == [0.2] * 100


def test_a_longer_wsd_is_the_same_before_its_decay():
    short = series({"type": "wsd", "total_steps": 50, "decay_share": 0.2})
    long = series({"type": "wsd", "total_steps": 100, "decay_share": 0.2})
    assert short[:40] == long[:40]
    assert short[45] < long[45]


def test_infinite_has_four_parts():
    options = {"type": "infinite", "warmup_steps": 4, "cooldown_steps": 20, "constant_factor": 0.25}
    found = series({**options, "anneal_from": 60, "anneal_steps": 20, "final_factor": 0.01})
    assert found[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert found[4:24] == pytest.approx([0.05 + 0.15 * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(20)])
    assert found[24:60] == pytest.approx([0.05] * 36)
    assert found[60:80] == pytest.approx([0.05 * (0.002 / 0.05) ** (t / 20) for t in range(20)])
    assert found[80:] == pytest.approx([0.002] * 20)
    assert series(options, range(10**6, 10**6 + 1)) == pytest.approx([0.05])
    straight = series({**options, "anneal_from": 60, "anneal_steps": 20})
    assert straight[70] == pytest.approx(0.025)
    assert straight[90] == 0


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_rex_is_its_formula(beta):
    found = series({"type": "rex", "beta": beta})
    assert found == pytest.approx([0.2 * (1 - s / 100) / (1 - beta * s / 100) for s in range(100)])


def test_linear_falls_from_the_full_rate_behind_its_warmup():
    found = series({"type": "linear", "warmup_steps": 20, "final_factor": 0.5})
    assert found[:20] == pytest.approx([0.01 * (s + 1) for s in range(20)])
    assert found[20:] == pytest.approx([0.2 * (1 - 0.5 * (s - 20) / 80) for s in range(20, 100)])


def test_cyclic_tradeoff_has_its_troughs_where_the_paper_has_them():
    schedule = CyclicTradeoff(first_cycle=8)
    assert [s for s in range(600) if schedule.is_trough(s)] == [8, 24, 56, 120, 248, 504]
    warmed = CyclicTradeoff(first_cycle=8, warmup_steps=8, min_factor=0.01)
    assert [s for s in range(600) if warmed.is_trough(s)] == [16, 32, 64, 128, 256, 512]
    assert [warmed(s, 1.0) for s in (0, 7, 8, 16, 32)] == pytest.approx([1 / 8, 1, 1, 1, 1])
    assert [warmed(s, 1.0) for s in (15, 31, 63, 127)] == pytest.approx([0.01] * 4)
    assert [warmed(s, 1.0) for s in range(16, 32)] == pytest.approx(
        [0.01 + 0.99 * (1 + math.cos(math.pi * t / 15)) / 2 for t in range(16)]
    )
    constant = CyclicTradeoff(first_cycle=10, growth=1.0)
    assert [s for s in range(1, 41) if constant.is_trough(s)] == [10, 20, 30, 40]
    assert not constant.is_trough(0)


def test_a_run_is_validated_and_saved_at_each_trough_and_resumes_within_a_cycle(tmp_path):
    cyclic = ("train.lr_scheme={type: cyclic_tradeoff, first_cycle: 2}", "train.val_freq=0", "logger.save_checkpoint_freq=100")
    trainer(tmp_path, toys.PSNR, "name=a", "train.niter=15", *cyclic).run()
    assert [row["step"] for row in rows(tmp_path / "a", "val")] == [2, 6, 14, 15]
    assert {p.name for p in (tmp_path / "a/checkpoints").iterdir()} == {"2", "6", "14", "15", "latest"}
    trainer(tmp_path, toys.PSNR, "name=b", "train.niter=9", *cyclic).run()
    trainer(tmp_path, toys.PSNR, "name=b", "train.niter=15", *cyclic).run()
    assert_same_tensors(tmp_path / "a/checkpoints/15", tmp_path / "b/checkpoints/15")


def test_plateau_falls_after_validations_without_progress():
    schedule = Plateau(metric="psnr", mode="max", patience=2, factor=0.1, threshold=0.01, min_factor=0.05)
    rates = []
    for value in (10.0, 11.0, 11.05, 10.0, 12.0, 12.0, 12.0, 12.0, 12.0):
        schedule.observe({"val": {"psnr": value}})
        rates.append(schedule(0, 1.0))
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05])
    lower = Plateau(metric="loss", mode="min", set="b", patience=1)
    for value in (3.0, 2.0, 2.0):
        lower.observe({"a": {}, "b": {"loss": value}})
    assert lower(0, 1.0) == 0.5
    with pytest.raises(ConfigurationError, match="gives 'loss' of 'b'; there are: a: psnr"):
        lower.observe({"a": {"psnr": 1.0}})


def test_plateau_is_part_of_a_checkpoint(tmp_path):
    scheme = "train.lr_scheme={type: plateau, metric: psnr, mode: min, patience: 1, threshold: 0.5}"  # never satisfied
    trainer(tmp_path, toys.PSNR, "name=a", "train.val_freq=2", scheme).run()
    trainer(tmp_path, toys.PSNR, "name=b", "train.val_freq=2", "train.niter=4", scheme).run()
    resumed = trainer(tmp_path, toys.PSNR, "name=b", "train.val_freq=2", scheme)
    resumed.run()
    found = [row["generator/lr"] for row in rows(tmp_path / "a", "train")]
    assert found == pytest.approx([1e-2, 1e-2, 5e-3, 2.5e-3])
    assert [row["generator/lr"] for row in rows(tmp_path / "b", "train")] == found
    assert_same_tensors(tmp_path / "a/checkpoints/8", tmp_path / "b/checkpoints/8")


def test_steps_and_groups_have_rates_of_their_own_and_explain_draws_them(tmp_path):
    config = configure(
        tmp_path, toys.GAN, "steps.generator.lr_scheme={type: rex}", "train.lr_scheme={type: wsd, warmup_steps: 2}",
        "steps.generator.optimizer_params.param_groups={first: {match: first, lr: 0.5}}",
    )  # fmt: skip
    found = {(each.step, each.group): each for each in learning_rates(config)}
    assert found["generator", "first"].at(2) == pytest.approx(0.5 * (1 - 2 / 8) / (1 - 0.5 * 2 / 8))
    assert found["discriminator", ""].schedule == "wsd"
    plateau = configure(tmp_path, toys.PSNR, "train.lr_scheme={type: plateau, metric: psnr, mode: max}")
    assert "it is lowered when validations of psnr" in learning_rates(plateau)[0].unknown


def test_plateau_goes_by_what_is_measured(tmp_path):
    with pytest.raises(ConfigurationError, match="'lpips' is not measured; there are: psnr, ssim_y"):
        configure(tmp_path, toys.PSNR, "train.lr_scheme={type: plateau, metric: lpips, mode: min}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "rex", "beta": 1.0}, "beta must be below 1"),
        ({"type": "infinite", "cooldown_steps": 5, "anneal_from": 9}, "give both"),
        ({"type": "infinite", "cooldown_steps": 5, "anneal_from": 4, "anneal_steps": 2}, "begin later"),
        ({"type": "cyclic_tradeoff", "first_cycle": 5, "growth": 0.5}, "growth must be 1 or more"),
        ({"type": "linear", "warmup_steps": 100}, "leaves nothing of 100"),
    ],
)
def test_faulty_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        series(options)
