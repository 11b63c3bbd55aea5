"""Where the time goes: the ledger, the count of arithmetic, advice, profiles."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import time

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import toys
from dlas.config.schema import ProfileConfig
from dlas.engine.advice import FIRST, Advisor
from dlas.engine.flops import FlopCounter, peak_rate
from dlas.engine.ledger import Lap, Ledger, in_words
from dlas.engine.profiling import RunProfiler
from dlas.engine.progress import Progress
from dlas.engine.stage import STAGE, Stage
from runs import assert_same_tensors, configure, trainer

CPU = torch.device("cpu")


def train_rows(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == "train"]


# ------------------------------------------------------------------------------------------------------------ the ledger


def test_the_parts_of_a_lap_sum_to_the_time_that_went_by():
    stage, progress = Stage(), Progress()
    began = time.perf_counter()
    ledger = Ledger(progress, CPU, stage)
    for _ in range(3):
        for name, of in (("data", ""), ("forward", "gen"), ("backward", "gen"), ("eval", "picture7"), ("other", "")):
            stage.enter(name, of)
            time.sleep(0.002)
    progress.step, progress.samples = 3, 12
    lap = ledger.lap(progress)
    whole = time.perf_counter() - began
    assert lap.seconds.keys() == {"start", "data", "gen/forward", "gen/backward", "eval", "other"}
    assert lap.total == pytest.approx(whole, rel=0.02)
    assert all(lap.seconds[part] >= 0.006 for part in ("data", "gen/forward", "gen/backward", "eval", "other"))
    assert lap.values()["samples_per_second"] == pytest.approx(12 / (lap.total - lap.seconds["eval"] - lap.seconds["start"]))
    assert lap.values()["data_wait_share"] == pytest.approx(lap.seconds["data"] / lap.training)
    assert ledger.lap(progress).iterations == 0


def test_a_jump_forgets_the_lap_and_keeps_the_sitting():
    stage, progress = Stage(), Progress()
    ledger = Ledger(progress, CPU, stage)
    stage.enter("data")
    time.sleep(0.005)
    progress.step = 100
    ledger.jump(progress)
    lap = ledger.lap(progress)
    assert lap.iterations == 0
    assert lap.seconds["data"] < 0.005 <= ledger.sitting().seconds["data"]


def test_a_closed_ledger_listens_no_longer():
    stage = Stage()
    ledger = Ledger(Progress(), CPU, stage)
    ledger.close()
    assert stage.listeners == ()


def test_in_words():
    words = in_words(Lap({"data": 3.0, "gen/backward": 6.96, "logging": 0.04}, 1, 1))
    assert words == "gen/backward 70 %, data 30 %"


def test_rows_of_a_run_tell_where_its_time_went(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dlas")
    run = trainer(tmp_path, toys.GAN, "logger.print_freq=2").run().folder
    assert STAGE.listeners == ()
    rows = train_rows(run)
    for before, row in itertools.pairwise(rows):
        parts = {key: value for key, value in row.items() if key.startswith("time/")}
        assert sum(parts.values()) == pytest.approx(row["seconds"] - before["seconds"], rel=0.02, abs=0.002)
    told = {key.removeprefix("time/") for row in rows for key in row}
    for step in ("generator", "discriminator"):
        assert {f"{step}/{stage}" for stage in ("forward", "backward", "optimizer")} <= told
    assert {"data", "transfer", "averages", "logging", "checkpoint"} <= told
    assert " time: " in (run / "train.log").read_text()


# ----------------------------------------------------------------------------------------------------------- arithmetic


def test_a_product_and_its_gradients_are_counted():
    layer, x = nn.Linear(8, 16, bias=False), torch.randn(4, 8, requires_grad=True)
    with FlopCounter() as counter:
        layer(x).sum().backward()
    assert counter.total == 3 * 2 * 4 * 8 * 16  # forward, gradient of the input, gradient of the weight


def test_what_is_computed_again_is_not_counted_again():
    layers, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), torch.randn(4, 8, requires_grad=True)
    totals = []
    for recompute in (False, True):
        with FlopCounter() as counter:
            STAGE.enter("forward", "gen")
            result = checkpoint(layers, x, use_reentrant=False) if recompute else layers(x)
            STAGE.enter("backward", "gen")
            result.sum().backward()
        totals.append(counter.total)
    assert totals[0] == totals[1] == 3 * 2 * 2 * 4 * 8 * 8


def test_a_run_tells_its_arithmetic(tmp_path):
    trainer(tmp_path, toys.PSNR, "logger.print_freq=4").run()
    # ToyGenerator at 8 x 8 pixels: 3 -> 4 and 4 -> 12 channels, 3 x 3; backward: both, but no gradient of the input
    forward = [2 * 64 * 9 * 3 * 4, 2 * 64 * 9 * 4 * 12]
    per_sample = 2 * forward[0] + 3 * forward[1]
    for row in train_rows(tmp_path / "toy"):
        training = sum(v for k, v in row.items() if k.startswith("time/") and k[5:] not in ("eval", "checkpoint", "start"))
        assert row["tflops"] * 1e12 * training == pytest.approx(per_sample * 4 * 4)
        assert row["mfu"] == pytest.approx(row["tflops"] / peak_rate(CPU, torch.float32, True))


def test_arithmetic_need_not_be_told(tmp_path):
    trainer(tmp_path, toys.PSNR, "logger.efficiency=false").run()
    assert not {"tflops", "mfu"} & train_rows(tmp_path / "toy")[0].keys()


# --------------------------------------------------------------------------------------------------------------- advice


def advised(config, seconds, retries=0):
    advisor = Advisor(config, CPU)
    lines = [advisor.advise(Lap(seconds, 1, 1), retries) for _ in range(FIRST + 2)]
    assert lines[:FIRST] == [None] * FIRST
    assert lines[-1] is None  # it has just been said
    return lines[FIRST]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({"data": 4.3, "gen/forward": 5.7}, ("data-bound: 43 %", "n_workers, now 0")),
        ({"eval": 4.0, "gen/forward": 6.0}, ("40 % of the time is validation", "val_freq")),
        ({"checkpoint": 4.0, "gen/forward": 6.0}, ("40 %", "save_checkpoint_freq")),
        ({"collective": 3.0, "gen/forward": 7.0}, ("30 %", "mega_batch_factor")),
        ({"gen/optimizer": 2.0, "disc/optimizer": 2.0, "gen/forward": 6.0}, ("40 % of the training updates weights",)),
        ({"logging": 1.0, "gen/forward": 9.0}, ("10 %", "print_freq")),
    ],
)
def test_advice(tmp_path, seconds, words):
    line = advised(configure(tmp_path, toys.PSNR), seconds)
    for each in words:
        assert each in line


def test_advice_on_a_nearly_full_memory_comes_first(tmp_path):
    assert "3 allocations" in advised(configure(tmp_path, toys.PSNR), {"data": 9.0}, retries=3)


def test_no_advice_where_all_is_well(tmp_path, monkeypatch):
    monkeypatch.setattr("dlas.engine.advice.has_bf16", lambda device: False)
    assert advised(configure(tmp_path, toys.PSNR), {"gen/forward": 4.0, "gen/backward": 6.0}) is None


# ------------------------------------------------------------------------------------------------------------- profiles


def test_a_profile_of_some_iterations(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dlas")
    run = trainer(tmp_path, toys.GAN, "profile.after=2", "profile.steps=3").run().folder
    folder = run / "profile"
    assert {file.name for file in folder.iterdir()} == {"trace_5.json.gz", "operations_5.txt"}
    events = json.loads(gzip.decompress((folder / "trace_5.json.gz").read_bytes()))["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert ranges.count("stage generator backward") == ranges.count("stage data") == 3
    table = (folder / "operations_5.txt").read_text()
    assert "aten::convolution_backward" in table
    assert len(table.split("memory that they left")[0].splitlines()) == 2 + 10 + 1
    assert "stage " not in table
    assert "aten::convolution_backward" in (run / "train.log").read_text()


def test_a_profile_changes_no_bit(tmp_path):
    trainer(tmp_path, toys.PSNR, "name=a").run()
    trainer(tmp_path, toys.PSNR, "name=b", "profile.after=1", "profile.shapes=true", "logger.efficiency=false").run()
    assert_same_tensors(tmp_path / "a/checkpoints/8", tmp_path / "b/checkpoints/8")


def test_a_profile_that_the_end_cuts_off_is_told_of(tmp_path):
    trainer(tmp_path, toys.PSNR, "profile.after=6", "profile.steps=5").run()
    assert not (tmp_path / "toy/profile").exists()
    assert "no profile is written" in (tmp_path / "toy/train.log").read_text()
    assert STAGE.listeners == ()


def test_other_ranks_have_files_of_their_own(tmp_path):
    profiler = RunProfiler(ProfileConfig(after=0, steps=1), tmp_path, CPU, rank=3)
    profiler.before_iteration()
    torch.ones(4).sum()
    profiler.after_iteration(1)
    assert {file.name for file in (tmp_path / "profile").iterdir()} == {"trace_1_rank3.json.gz", "operations_1_rank3.txt"}
