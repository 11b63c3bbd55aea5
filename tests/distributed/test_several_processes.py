"""Two processes give what one gives, write what one writes, and end together."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import components  # noqa: F401
import pytest

import toys
from runs import checkpoint_tensors, rows, trainer

HERE = Path(__file__).parent
COMMON = ("logger.tensorboard=false", "device=cpu")
BATCH = "datasets.train.batch_size=8"
TEACHER = """\
name: teacher
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 8}
  val: {mode: toy_pairs}
networks:
  generator: {which_model_G: ToyBlocks}
  teacher: {which_model_G: ToyBlocks, trainable: false}
steps:
  generator:
    training: generator
    optimizer: adamw
    optimizer_params: {lr: 1e-3, weight_decay: 0.1}
    clip_grad_eps: 0.05
    injectors:
      taught: {type: generator, generator: teacher, in: lq, out: taught, no_grad: true}
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, criterion: l2, weight: 1, real: taught, fake: gen}
train: {niter: 8, ema: {rate: 0.5}}
eval: {metrics: [psnr], crop_border: 2}
logger: {print_freq: 3, save_checkpoint_freq: 3, tensorboard: false}
"""
DIFFUSION = """\
name: diffusion
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 8}
networks:
  generator: {which_model_G: ToyDenoiser}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
      error:
        type: diffusion
        in: hq
        out: error
        generator: generator
        process: {type: flow}
        prediction: velocity
        conditions: {low: lq}
        drop_rate: 0.25
        unconditional: {low: 0}
    losses: {diffusion: {type: direct, key: error, weight: 1}}
train: {niter: 8}
logger: {print_freq: 3, save_checkpoint_freq: 3, tensorboard: false}
"""
AUTOREGRESSIVE = """\
name: autoregressive
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 8}
networks:
  prior: {which_model_G: token_transformer, vocabularies: [8], lengths: [16], channels: 8, depth: 2, num_heads: 2}
steps:
  prior:
    training: prior
    optimizer: adamw
    optimizer_params: {lr: 1e-2, weight_decay: 0.1, eps: 1e-4}  # the bias of keys has no gradient but rounding
    clip_grad_eps: 0.5
    injectors:
      tokens: {type: toy_tokens, in: hq, out: tokens}
      logits: {type: generator, generator: prior, in: tokens, out: [logits]}
    losses: {tokens: {type: token_cross_entropy, logits: logits, tokens: tokens, weight: 1}}
train: {niter: 8, ema: {rate: 0.5}}
logger: {print_freq: 3, save_checkpoint_freq: 3, tensorboard: false}
"""
CLIP = """\
name: clip
scale: 2
datasets: {train: {mode: toy_pairs, batch_size: 8}}
networks: {clip: {which_model: ToyClip}}
steps:
  clip:
    training: clip
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors: {loss: {type: generator, generator: clip, in: [lq, hq], out: loss}}
    losses: {contrast: {type: direct, key: loss, weight: 1}}
train: {niter: 8}
logger: {print_freq: 3, save_checkpoint_freq: 3, tensorboard: false}
"""
FILES = {
    "clip": (CLIP,),
    "psnr": (toys.PSNR, BATCH, "networks.generator.dropout=0"),
    "gan": (toys.GAN, BATCH),
    "penalty": (toys.GAN, BATCH, "steps.discriminator.losses.gan.gradient_penalty=true"),
    "diffusion": (DIFFUSION,),
    "autoregressive": (AUTOREGRESSIVE,),
    "teacher": (TEACHER,),
    "lora": (TEACHER, "networks.generator.lora={rank: 2}"),
    "contrastive": (
        TEACHER,
        "steps.generator.injectors.all={type: all_gather, in: gen, out: all}",
        "steps.generator.injectors.all_hq={type: all_gather, in: hq, out: all_hq}",
        "steps.generator.losses.contrast={type: toy_contrast, in: all, of: all_hq, weight: 1}",
    ),
}
CUT = "train.mega_batch_factor=2"
"""Two micro-batches a batch. What is named in `CUTS` does not depend on it; `contrastive` does: see below."""
CUTS = ("psnr", "gan", "diffusion", "autoregressive")
RESUMED = (toys.PSNR, BATCH, "networks.generator.dropout=0", "train.lr_scheme={type: constant}", "train.val_freq=0")
# Running statistics, dropout, and a network whose only loss comes late.
NORMALISED = (
    TEACHER,
    "networks.normalised={which_model_G: ToyNormalised}",
    "steps.generator.training=[generator, normalised]",
    "steps.generator.injectors.other={type: generator, generator: normalised, in: lq, out: other}",
    "steps.generator.losses.late={type: pix, criterion: l2, weight: 1, real: hq, fake: other, after: 2}",
)
# A sample of the second process, in the fourth iteration.
BAD = (*RESUMED, "steps.generator.losses.bad={type: toy_bad_sample, in: gen, weight: 0.1, position: 30}")
STOP = "steps.generator.injectors.stop={type: toy_death, in: noisy, out: stopped, at: 3, rank: 1, number: 15}"  # SIGTERM
POLICIES = ("skip", "rollback")
# The second process has no memory for more than two samples at a time, in the backward pass.
SHORT = (
    *FILES["gan"],
    "train.micro_batch_size=auto",
    "steps.generator.losses.short={type: toy_short, in: gen, weight: 0.1, above: 2, rank: 1}",
)
DEATH = "steps.generator.injectors.death={type: toy_death, in: noisy, out: dead, at: 5, rank: 1}"
STRATEGIES = ("ddp", "fsdp")


def torchrun(
    folder: Path, jobs: dict[str, tuple[str, ...]], processes: int = 2, *options: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Trains files one after the other in several processes. By the name of its run: the text of a file, and overrides."""
    listed = []
    for number, (name, (text, *overrides)) in enumerate(jobs.items()):
        file = folder / f"{number}.yml"
        file.write_text(text)
        listed.append([str(file), [f"path.experiments={folder}", *COMMON, f"name={name}", *overrides]])
    (folder / "jobs.json").write_text(json.dumps(listed))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [*command, str(HERE / "session.py"), str(folder / "jobs.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def alone(folder: Path, text: str, *overrides: str) -> Path:
    """Trains a file in this process."""
    return trainer(folder, text, *COMMON, *overrides).run().folder


def assert_same_figures(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two rows of metrics.jsonl say the same but for rounding."""
    assert list(one) == list(other)
    for key, value in one.items():
        assert value == (other[key] if isinstance(value, str) else pytest.approx(other[key], rel=1e-5, abs=1e-6)), key


def assert_alike(one: Path, other: Path, step: int) -> None:
    """Two runs have the same rows, and the same weights, averages and moments but for rounding."""
    for phase in ("train", "val"):
        first, second = rows(one, phase), rows(other, phase)
        assert first or phase == "val"
        for row, same in zip(first, second, strict=True):
            assert_same_figures(row, same)
    tensors, others = (checkpoint_tensors(each / "checkpoints" / str(step)) for each in (one, other))
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        if not key.endswith("calls"):  # counts forward passes
            assert (value.double() - others[key].double()).abs().max() < 2e-6, key


def assert_ended_together(done: subprocess.CompletedProcess[str], folder: Path, by_signal: bool = False) -> None:
    """Rank 1 has died at the sixth iteration, and torchrun ended the others within seconds, with its name and traceback."""
    assert done.returncode == 1
    failures, root = done.stderr.split("Root Cause")
    if by_signal:  # it left no note of when: what its end did to the other one may count as the first failure
        assert "Signal 9 (SIGKILL) received by PID" in failures + root and "rank      : 1" in failures + root
    else:
        assert "rank      : 1" in root
        assert "Traceback" in root and "RuntimeError: the toy has died" in root
    took = time.time() - (folder / "metrics.jsonl").stat().st_mtime
    assert took < 20, "the others went on waiting"


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Path:
    """The folder of runs that two processes have made."""
    folder = tmp_path_factory.mktemp("session")
    jobs: dict[str, tuple[str, ...]] = {}
    for strategy in STRATEGIES:
        chosen = f"distributed.strategy={strategy}"
        jobs |= {f"{name}-{strategy}": (*file, chosen) for name, file in FILES.items()}
        jobs |= {f"{name}-{strategy}-cut": (*FILES[name], chosen, CUT) for name in (*CUTS, "contrastive")}
        jobs[f"resumed-{strategy}"] = (*RESUMED, chosen, "train.niter=3")
        jobs[f"stopped-{strategy}"] = (*RESUMED, chosen, STOP)
        for policy in POLICIES:
            jobs[f"{policy}-{strategy}"] = (*BAD, chosen, f"train.health.non_finite={policy}")
    jobs["normalised"] = NORMALISED
    jobs["short"] = SHORT
    jobs["static"] = (*FILES["gan"], "distributed.static_graph=true")
    done = torchrun(folder, jobs)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", FILES)
def test_two_processes_give_what_one_gives_however_the_batch_is_cut(session, tmp_path, name):
    one = alone(tmp_path, *FILES[name])  # eight samples at once
    for strategy in STRATEGIES:
        assert_alike(one, session / f"{name}-{strategy}", 8)  # four in each process
        if name in CUTS:
            assert_alike(one, session / f"{name}-{strategy}-cut", 8)  # twice two in each process
    if name in CUTS:
        assert_alike(one, alone(tmp_path, *FILES[name], CUT, "name=cut"), 8)  # twice four


def test_micro_batches_of_a_contrastive_loss_are_compared_each_for_itself(session):
    whole, cut = (rows(session / f"contrastive-{each}", "train")[0]["generator/contrast"] for each in ("ddp", "ddp-cut"))
    assert cut < whole - 0.3  # there are four to choose from, and not eight
    assert_alike(session / "contrastive-ddp-cut", session / "contrastive-fsdp-cut", 8)


@pytest.mark.slow
def test_four_processes_give_what_one_gives(tmp_path):
    strategies = STRATEGIES if importlib.util.find_spec("deepspeed") is None else (*STRATEGIES, "deepspeed")
    jobs = {name: (*FILES["gan"], f"distributed.strategy={name}") for name in strategies}
    jobs["cut"] = (*FILES["gan"], CUT)
    done = torchrun(tmp_path, jobs, processes=4)
    assert done.returncode == 0, done.stderr[-3000:]
    one = alone(tmp_path, *FILES["gan"])
    for name in jobs:
        assert_alike(one, tmp_path / name, 8)


def test_a_graph_that_stays_the_same_may_be_told_so(session, tmp_path):
    text, *overrides = FILES["gan"]
    assert_alike(alone(tmp_path, text, *overrides), session / "static", 8)


def test_memory_that_runs_out_in_one_process_cuts_smaller_in_all(session, tmp_path):
    one = alone(tmp_path, *SHORT)
    short = session / "short"
    for row, other in zip(rows(one, "train"), rows(short, "train"), strict=True):
        assert (row.pop("micro_batch_size"), other.pop("micro_batch_size")) == (8, 2)
        assert_same_figures(row, other)
    tensors, others = (checkpoint_tensors(each / "checkpoints/8") for each in (one, short))
    for key, value in tensors.items():
        assert key.endswith("calls") or (value.double() - others[key].double()).abs().max() < 2e-6, key
    log = (short / "train.log").read_text()
    assert log.count("out of memory in step 'generator', another process") == 1
    assert "gradients travel after the backward pass" in log


@pytest.mark.parametrize("policy", POLICIES)
def test_a_bad_sample_of_one_process_is_everybodys(session, tmp_path, policy):
    text, *overrides = BAD
    one = alone(tmp_path, text, *overrides, f"train.health.non_finite={policy}")
    for strategy in STRATEGIES:
        assert_alike(one, session / f"{policy}-{strategy}", 8)
    assert (session / f"{policy}-ddp/crashes/rank1").is_dir()


def test_a_request_to_stop_that_one_process_gets_stops_both(session):
    for strategy in STRATEGIES:
        folder = session / f"stopped-{strategy}"
        assert (folder / "checkpoints/latest").read_text() == "4"
        assert "stopped by SIGTERM at step 4" in (folder / "train.log").read_text()


def test_what_no_loss_reaches_is_named_and_stays(session):
    for run, left in (
        ("teacher-ddp", "generator.spare.weight, generator.spare.bias"),
        ("normalised", "normalised.conv.weight"),
    ):
        log = (session / run / "train.log").read_text()
        assert log.count("no loss that is on reaches") == log.count(left) > 0
    # A network whose first loss comes later is trained from then on.
    early, late = (checkpoint_tensors(session / "normalised/checkpoints" / step) for step in ("3", "8"))
    key = "normalised.safetensors:conv.weight"
    assert not early[key].equal(late[key])
    assert early["generator.safetensors:spare.weight"].equal(late["generator.safetensors:spare.weight"])


def test_the_first_process_writes_alone(session):
    folder = session / "psnr-ddp"
    assert len((folder / "train.log").read_text().split("network generator:")) == 2
    assert [row["step"] for row in rows(folder, "train")] == [2, 4, 6, 8]
    names = checkpoint_tensors(folder / "checkpoints/8")
    assert not [name for name in names if "module." in name]
    assert {path.name for path in (folder / "val/val").iterdir() if path.is_dir()} == {"picture0", "picture1"}


def test_a_run_goes_on_with_another_number_of_processes_and_a_dead_one_ends_the_others(session, tmp_path):
    text, *overrides = RESUMED
    whole = alone(tmp_path, text, *overrides)
    jobs = {}
    for strategy in STRATEGIES:
        alone(session, text, *overrides, f"name=resumed-{strategy}", "train.niter=5")
        jobs[f"resumed-{strategy}"] = (*RESUMED, f"distributed.strategy={strategy}")
    jobs["dead"] = (*RESUMED, DEATH)
    done = torchrun(session, jobs)
    assert_ended_together(done, session / "dead")
    for strategy in STRATEGIES:
        resumed = session / f"resumed-{strategy}"
        for key, value in checkpoint_tensors(whole / "checkpoints/8").items():
            other = checkpoint_tensors(resumed / "checkpoints/8")[key]
            assert key.endswith("calls") or (value.double() - other.double()).abs().max() < 2e-6, key
        assert_same_figures(rows(whole, "train")[-1], rows(resumed, "train")[-1])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
@pytest.mark.parametrize("how", [DEATH, DEATH.replace("rank: 1", "rank: 1, number: 9")], ids=["error", "SIGKILL"])
def test_a_dead_process_ends_the_others_under_every_strategy(tmp_path, strategy, how):
    if strategy == "deepspeed":
        pytest.importorskip("deepspeed")
    done = torchrun(tmp_path, {"dead": (*RESUMED, f"distributed.strategy={strategy}", how)})
    assert_ended_together(done, tmp_path / "dead", by_signal="number" in how)
