"""What a strategy cannot do is told from the file alone, with its line; a run in one process goes on with a warning."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

import toys
from dlas.config import check, load
from dlas.errors import ConfigurationError

DDP = {"strategy": "ddp"}
FSDP = {"strategy": "fsdp"}
ZERO = {"strategy": "deepspeed"}
ZERO3 = {"strategy": "deepspeed", "deepspeed": {"stage": 3}}
STATIC = {"strategy": "ddp", "static_graph": True}
STEP = "steps.generator"
AUTO = {"train.micro_batch_size": "auto"}
GATHERING = {"type": "table", "table": [[0, 2]]}
ALL = {"type": "all_gather", "in": "gen", "out": "all"}
EMA = {"type": "generator_ema", "generator": "generator", "in": "lq", "out": "steady"}
R1 = {"type": "r1", "weight": 1, "real": "hq", "discriminator": "discriminator"}
# The distributed section, what else is written where, the key that is pointed at, and what is said of it.
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (ZERO, {"precision": "fp16"}, "precision", "losses are not scaled there; take bf16"),
    (ZERO, {"networks.generator.freeze": {"all": {"match": "first"}}}, "freeze", "updates what has no gradient, too; take"),
    (ZERO, {"networks.generator": {"which_model": "srflow"}}, "which_model", "first weights .* follow from the first batch"),
    (ZERO, {"train.health": {"spike": "skip"}}, "spike", "write 'spike: \"off\"'"),
    (ZERO, {f"{STEP}.health": {"spike": "stop"}}, "spike", "write 'spike: \"off\"'"),
    (ZERO, {"train.noise_scale": {}}, "noise_scale", "no process has the gradient of a part of the batch"),
    (ZERO, {"train.batch_size_optimizer": GATHERING}, "batch_size_optimizer", "remove it, or take 'ddp'"),
    (ZERO, AUTO, "micro_batch_size", "write a number, or take 'ddp'"),
    (ZERO, {"compile": True}, "compile", "leave one of them out"),
    (ZERO, {f"{STEP}.optimizer": "lamb"}, "optimizer", "flat pieces of parameters; take one of: ASGD, Adadelta, Adam, "),
    (ZERO, {f"{STEP}.optimizer": "torch.optim.Adafactor"}, "optimizer", "flat pieces of parameters"),
    (ZERO | {"sync_batchnorm": True}, {}, "sync_batchnorm", "it is for 'ddp'; remove it, or take 'strategy: ddp'"),
    (ZERO | {"gather_dtype": "bf16"}, {}, "gather_dtype", "it is for 'fsdp'; remove it, or take 'strategy: fsdp'"),
    (ZERO, {"distributed.deepspeed": {"offload_param": True}}, "offload_param", "write 'stage: 3', too"),
    (ZERO, {"distributed.deepspeed": {"options": {"train_batch_size": 16}}}, "options", "is 16, .* it is 4"),
    (ZERO, {"distributed.deepspeed": {"options": {"gradient_clipping": 1.0}}}, "options", r"is steps\.\w+\.clip_grad_eps"),
    (ZERO, {"distributed.deepspeed": {"config": "no.json"}}, "config", "no.json cannot be read"),
    *(
        (ZERO3, {"distributed.deepspeed.options": {"zero_optimization": {part: {"device": "nvme"}}}}, "options", "nvme' cannot")
        for part in ("offload_optimizer", "offload_param")
    ),
    (ZERO3, {"eval.tile": "auto"}, "tile", "and stage 3: processes must cut alike; write a number"),
    (ZERO3, {f"{STEP}.balance": {"at": "gen"}}, "balance", "goes back through a network twice; take 'deepspeed: {stage: 2}'"),
    (ZERO3, {f"{STEP}.injectors.gen.method": "forward"}, "method", "calls forward of generator, .* or 'strategy: fsdp'"),
    (ZERO3, {f"{STEP}.injectors.steady": EMA}, "type", "with its averaged weights"),
    (ZERO3, {"steps.discriminator.losses.gan.gradient_penalty": True}, "gradient_penalty", "gradients of gradients do not"),
    (ZERO3, {"steps.discriminator.losses.r1": R1}, "type", "gradients of gradients do not find them; take"),
    (FSDP, AUTO, "micro_batch_size", "write a number, or take 'ddp'"),
    (FSDP, {"train.batch_size_optimizer": GATHERING}, "batch_size_optimizer", "remove it, or take 'ddp'"),
    (FSDP, {"train.noise_scale": {}}, "noise_scale", "and one micro-batch: .* write 'train.mega_batch_factor: 2' or more"),
    (FSDP, {f"{STEP}.optimizer": "adafactor"}, "optimizer", "parts of weights by it; take another one, or 'ddp'"),
    (FSDP, {"compile": True}, "compile", "leave one of them out"),
    (FSDP, {"train.ema.device": "cpu"}, "device", "averages are cut up"),
    (FSDP | {"sync_batchnorm": True}, {}, "sync_batchnorm", "take 'strategy: ddp'"),
    (FSDP | {"gather_for_evaluation": False}, {"eval.tile": "auto"}, "tile", "must cut alike; write a number"),
    (FSDP | {"gather_dtype": "bf16"}, {"precision": "fp32"}, "gather_dtype", "write 'precision: bf16' .* too"),
    (DDP, AUTO | {f"{STEP}.injectors.all": ALL}, "micro_batch_size", r"and 'all_gather' \(steps.generator.injectors.all\): "),
    (DDP | {"sync_batchnorm": True}, AUTO, "micro_batch_size", "and distributed.sync_batchnorm: .*; write a number"),
    (STATIC, {"train.mega_batch_factor": 2}, "static_graph", "and micro-batches: torch counts .*; remove it"),
    (STATIC, AUTO, "static_graph", "and micro-batches"),
    (STATIC, {"train.noise_scale": {}}, "static_graph", "and train.noise_scale"),
]
TOLD = [
    ({}, AUTO | {f"{STEP}.injectors.all": ALL}, "micro_batch_size", "cannot be had with 'strategy: ddp' and 'all_gather'"),
    ({}, {f"{STEP}.injectors.all": ALL, "train.mega_batch_factor": 2}, "mega_batch_factor", "and not micro-batches: less is"),
    (FSDP | {"bucket_mb": 10}, {}, "bucket_mb", "has no effect with 'strategy: fsdp': it is for 'ddp'; remove it"),
    ({"deepspeed": {"stage": 1}}, {}, "deepspeed", "has no effect with 'strategy: ddp': it is for 'deepspeed'"),
    (ZERO, {"train.crash_bundles": {"count": 2}}, "count", "has no effect with 'strategy: deepspeed': no process has all"),
]
RIGHT = [
    (ZERO, {"steps.discriminator.losses.r1": R1}),
    (ZERO, {f"{STEP}.optimizer": "fused_adam"}),
    (ZERO, {"distributed.deepspeed": {"options": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}}}),
    (ZERO3 | {"timeout": 60}, {f"{STEP}.health": {"spike": "off"}}),
    (FSDP, {"train": {"niter": 8, "noise_scale": {}, "micro_batch_size": 2}}),
    (FSDP, {"precision": "fp16"}),
    (FSDP, {f"{STEP}.optimizer": "lamb"}),
    ({}, AUTO),
    ({"static_graph": True}, {"train.mega_batch_factor": 1}),
    ({"strategy": "none", "static_graph": True}, {"train.mega_batch_factor": 2}),
]


def write(folder: Path, distributed: dict[str, Any], changes: dict[str, Any]) -> Path:
    tree = yaml.safe_load(toys.GAN) | {"distributed": copy.deepcopy(distributed)}
    for path, value in changes.items():
        *outer, last = path.split(".")
        holder = tree
        for key in outer:
            holder = holder.setdefault(key, {})
        holder[last] = value
    file = folder / "options.yml"
    file.write_text(yaml.dump(tree, sort_keys=False))
    return file


def names(rows: Iterable[tuple[Any, ...]]) -> list[str]:
    return ["-".join([row[0].get("strategy", ""), *row[1], *row[2:3]]) for row in rows]


@pytest.mark.parametrize(("distributed", "changes", "key", "words"), REFUSED, ids=names(REFUSED))
def test_the_checker_refuses_it_where_it_stands(tmp_path, distributed, changes, key, words):
    file = write(tmp_path, distributed, changes)
    problems = [each for each in check(file) if each.severity == "error"]
    assert problems
    for problem in problems:
        assert problem.mark.file == str(file)
        assert problem.path.endswith(f".{key}") or problem.path == key
        assert key in file.read_text().splitlines()[problem.mark.line - 1]
        assert re.search(words, str(problem)), problem


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed"])
def test_one_process_runs_and_several_do_not(tmp_path, monkeypatch, strategy):
    file = write(tmp_path, *next(row[:2] for row in REFUSED if row[0]["strategy"] == strategy))
    told = [each.severity for each in load(file).notices if f"cannot be had with 'strategy: {strategy}'" in str(each)]
    assert told == ["warning"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match=f"1 problem in .*\n.*cannot be had with 'strategy: {strategy}'"):
        load(file)


@pytest.mark.parametrize(("distributed", "changes", "key", "words"), TOLD, ids=names(TOLD))
def test_the_checker_warns_of_what_has_less_effect_or_none(tmp_path, distributed, changes, key, words):
    (problem,) = (each for each in check(write(tmp_path, distributed, changes)) if each.path.endswith(key))
    assert problem.severity == "warning"
    assert words in str(problem)


@pytest.mark.parametrize(("distributed", "changes"), RIGHT, ids=names(RIGHT))
def test_nothing_is_said_of_what_can_be_had(tmp_path, distributed, changes):
    assert not check(write(tmp_path, distributed, changes))
