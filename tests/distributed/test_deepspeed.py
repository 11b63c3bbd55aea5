"""DeepSpeed's ZeRO in two processes gives what one process gives without it, and goes on from its checkpoints."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import components  # noqa: F401
import pytest
import torch
from test_several_processes import (
    AUTOREGRESSIVE,
    BAD,
    CUT,
    CUTS,
    FILES,
    RESUMED,
    TEACHER,
    alone,
    assert_alike,
    assert_same_figures,
    torchrun,
)
from torch import nn

import toys
from dlas.config import Config
from dlas.config.deepspeed_json import deepspeed_json
from dlas.engine.distributed import deepspeed
from dlas.errors import ConfigurationError, MissingPackageError
from runs import checkpoint_tensors, configure, rows

installed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
STAGES = (1, 2, 3)
SECONDS = 590  # on a very busy machine; 45 were measured on two shared cores
pytestmark = pytest.mark.timeout(SECONDS + 10)
# Of a network without an unused branch, since DeepSpeed updates what has no gradient as well.
PLAIN = "networks.generator={which_model_G: ToyGenerator}"
SAME = {name: (*file, PLAIN) if name in ("teacher", "contrastive") else file for name, file in FILES.items()}
SAME["lora"] = (TEACHER, "networks.generator={which_model_G: ToyGenerator, lora: {rank: 2}}")
OFFLOADED = (AUTOREGRESSIVE, "distributed.deepspeed.offload_optimizer=true")


def zero(stage: int) -> tuple[str, str]:
    return "distributed.strategy=deepspeed", f"distributed.deepspeed.stage={stage}"


def stages(name: str) -> tuple[int, ...]:
    return (1, 2) if name in ("penalty", "clip") else STAGES  # stage 3: no gradients of gradients, no single numbers


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """The folder of runs that two processes have made."""
    folder = tmp_path_factory.mktemp("session")
    jobs: dict[str, tuple[str, ...]] = {}
    for stage in STAGES:
        jobs |= {f"{name}-{stage}": (*file, *zero(stage)) for name, file in SAME.items() if stage in stages(name)}
        jobs |= {f"{name}-{stage}-cut": (*SAME[name], *zero(stage), CUT) for name in (*CUTS, "contrastive")}
        alone(folder, *RESUMED, f"name=resumed-{stage}", "train.niter=3")
        form = "sharded" if stage == 3 else "whole"
        jobs[f"resumed-{stage}"] = (*RESUMED, *zero(stage), "train.niter=5", f"checkpoints.format={form}")
    for stage in (2, 3):
        jobs[f"offloaded-{stage}"] = (*OFFLOADED, *zero(stage))
        jobs[f"skip-{stage}"] = (*BAD, *zero(stage), "train.health.non_finite=skip")
    jobs["rollback-2"] = (*BAD, *zero(2), "train.health.non_finite=rollback")
    jobs["offloaded-3"] += ("distributed.deepspeed.offload_param=true",)
    jobs["bf16-2"] = (*FILES["psnr"], *zero(2), "precision=bf16")
    done = torchrun(folder, jobs, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@installed
@pytest.mark.parametrize("name", SAME)
def test_two_processes_give_what_one_gives_however_the_batch_is_cut(session, tmp_path, name):
    one = alone(tmp_path, *SAME[name])  # eight samples at once
    others = [f"{name}-{stage}" for stage in stages(name)]  # four in each process
    if name in CUTS:
        others += [f"{name}-{stage}-cut" for stage in STAGES]  # twice two in each process
    if name == "autoregressive":
        others += [f"offloaded-{stage}" for stage in (2, 3)]
    for other in others:
        assert_alike(one, session / other, 8)
    if name == "contrastive":  # its micro-batches are compared each for itself
        for stage in (2, 3):
            assert_alike(session / "contrastive-1-cut", session / f"contrastive-{stage}-cut", 8)


@installed
def test_a_run_goes_on_with_another_strategy_and_back(session, tmp_path):
    whole = alone(tmp_path, *RESUMED)
    for stage in STAGES:
        resumed = alone(session, *RESUMED, f"name=resumed-{stage}")  # three steps in one process, two in two, three in one
        for key, value in checkpoint_tensors(whole / "checkpoints/8").items():
            other = checkpoint_tensors(resumed / "checkpoints/8")[key]
            assert key.endswith("calls") or (value.double() - other.double()).abs().max() < 2e-6, key
        assert_same_figures(rows(whole, "train")[-1], rows(resumed, "train")[-1])


@installed
@pytest.mark.parametrize(("policy", "stages"), [("skip", (2, 3)), ("rollback", (2,))])
def test_a_bad_sample_of_one_process_is_everybodys(session, tmp_path, policy, stages):
    one = alone(tmp_path, *BAD, f"train.health.non_finite={policy}")
    for stage in stages:
        assert_alike(one, session / f"{policy}-{stage}", 8)


@installed
def test_bf16_computes_in_16_bits_and_keeps_32(session, tmp_path):
    one = alone(tmp_path, *FILES["psnr"], "precision=bf16")
    losses, others = (rows(run, "train")[-1]["generator/pix"] for run in (one, session / "bf16-2"))
    assert losses == pytest.approx(others, rel=1e-2)
    states = checkpoint_tensors(session / "bf16-2/checkpoints/8")
    for key, value in states.items():
        assert value.dtype in (torch.float32, torch.int64), key
    # What is updated has more digits than 16 bits hold.
    weight = states["generator.safetensors:first.weight"]
    assert (weight != weight.bfloat16().float()).float().mean() > 0.9


# ------------------------------------------------------------------------------------------- without DeepSpeed, in one process


@pytest.fixture
def config(tmp_path) -> Config:
    return configure(tmp_path, toys.PSNR, *zero(2), "datasets.train.batch_size=8", "train.mega_batch_factor=2")


def test_its_json_follows_from_the_file(config):
    config.distributed.deepspeed.offload_optimizer = True
    made = deepspeed_json(config, "generator", 0.5, world_size=2)
    assert made["train_micro_batch_size_per_gpu"] == 4 and made["gradient_accumulation_steps"] == 1
    assert made["gradient_clipping"] == 0.5
    assert made["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}}


def test_the_users_own_json_goes_before(config, tmp_path):
    file = tmp_path / "ds.json"
    theirs = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": "auto",
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True},
        "wall_clock_breakdown": True,
    }
    file.write_text(json.dumps(theirs))
    config.distributed.deepspeed.config = str(file)
    config.distributed.deepspeed.options = {"zero_optimization": {"overlap_comm": False}}
    made = deepspeed_json(config, "generator", 0.0, world_size=2)
    assert made["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": False}
    assert made["train_micro_batch_size_per_gpu"] == 4 and made["wall_clock_breakdown"] is True
    assert "fp16" not in made and "train_batch_size" not in made


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"train_batch_size": 16}, r"train_batch_size is 16, .* it is 8. Its place is datasets\.train\.batch_size"),
        ({"gradient_accumulation_steps": 3}, r"is 3, .* it is 2. Its place is train\.mega_batch_factor"),
        ({"gradient_clipping": 1.0}, r"is 1\.0, .* it is 0\.5. Its place is steps\.generator\.clip_grad_eps"),
        ({"zero_optimization": {"stage": 3}}, r"stage is 3, .* it is 2. Its place is distributed\.deepspeed\.stage"),
        ({"optimizer": {"type": "Adam"}}, r"'optimizer' is not taken .* its place is steps\.<name>\.optimizer"),
        ({"fp16": {"enabled": True}}, r"'fp16' is not taken .* take bf16"),
    ],
)
def test_what_says_two_things_is_refused(config, entries, match):
    config.distributed.deepspeed.options = entries
    with pytest.raises(ConfigurationError, match=match):
        deepspeed_json(config, "generator", 0.5, world_size=2)


def test_a_json_that_cannot_be_read_is_named(config, tmp_path):
    file = tmp_path / "ds.json"
    file.write_text("{")
    config.distributed.deepspeed.config = str(file)
    with pytest.raises(ConfigurationError, match=r"ds\.json cannot be read"):
        deepspeed_json(config, "generator", 0.0, world_size=2)


def test_a_network_belongs_to_one_engine(config, monkeypatch):
    package = SimpleNamespace(initialize=lambda **_: [SimpleNamespace(optimizer=SimpleNamespace())])
    monkeypatch.setattr(deepspeed, "_import", lambda _: package)
    strategy = deepspeed.ZeroSharded(config, torch.device("cpu"))
    network = nn.Linear(2, 2)
    strategy._networks = {"net": network}
    named, optimizer = {"net.weight": network.weight}, torch.optim.SGD(network.parameters(), lr=1.0)
    strategy.exchange("one", named, optimizer, 0.0)
    with pytest.raises(ConfigurationError, match="steps 'one' and 'other' both train net"):
        strategy.exchange("other", named, optimizer, 0.0)
    with pytest.raises(ConfigurationError, match=r"steps\.one\.optimizer: Adafactor cannot be had"):
        strategy.exchange("one", named, torch.optim.Adafactor(network.parameters()), 0.0)
    config.distributed.deepspeed.stage = 3
    with pytest.raises(ConfigurationError, match=r"networks\.generator\.scale is a single number"):
        strategy.spread({"generator": nn.ParameterDict({"scale": nn.Parameter(torch.tensor(1.0))})})
    network.frozen_at_first = {"": 0.5}
    with pytest.raises(ConfigurationError, match=r"networks\.generator: parts that are frozen"):
        strategy.spread({"generator": network})


def test_the_extra_is_named_where_it_is_missing(config, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", None)
    monkeypatch.setattr(logging.getLogger("DeepSpeed"), "level", logging.WARNING)
    with pytest.raises(MissingPackageError, match=r"pip install 'dlas\[deepspeed\]'"):
        deepspeed.ZeroSharded(config, torch.device("cpu"))
