"""Files with diffusion injectors: checked, rehearsed without data, explained, run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlas.config import check
from dlas.engine.dryrun import dry_run
from dlas.explain.words import explain
from runs import configure, rows, trainer

FILE = """
name: run
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 4, length: 8}
networks:
  generator: {which_model_G: ToyDenoiser}
  student: {which_model_G: ToyDenoiser}
  worse: {which_model_G: ToyDenoiser, trainable: false}
  level: {which_model_G: noise_level_variance, channels: 8}
steps:
  generator:
    training: [generator, level]
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
      error:
        type: diffusion
        in: hq
        out: error
        generator: generator
        process: {type: vp, zero_terminal_snr: true}
        prediction: v
        weighting: {type: min_snr}
        log_variance: level
        times: {type: loss_second_moment}
        noise: assignment
        offset_noise: 0.1
        conditions: {low: lq}
        drop_rate: 0.25
        unconditional: {low: 0}
      made:
        type: diffusion_sample
        generator: generator
        process: {type: vp, zero_terminal_snr: true}
        prediction: v
        conditions: {low: lq}
        unconditional: {low: 0}
        guide: worse
        guidance: 2
        guidance_interval: [0.1, 10]
        clip: dynamic
        like: lq
        enlarge: 2
        steps: 4
        sampler: {type: heun, s_churn: 1}
        spacing: karras
        out: made
        out_strip: strip
        average: true
    losses: {diffusion: {type: direct, key: error, weight: 1}}
  student:
    training: student
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
      consistency:
        type: consistency
        in: hq
        out: student_error
        generator: student
        process: {type: flow}
        teacher: worse
        teacher_prediction: velocity
        target: average
        scales_steps: 10
        conditions: {low: lq}
    losses: {consistency: {type: direct, key: student_error, weight: 1}}
train: {niter: 3, mega_batch_factor: 2}
logger: {print_freq: 1, tensorboard: false, visuals: [strip], visual_debug_rate: 1}
"""


def test_a_file_with_all_of_it_is_right_rehearsed_and_runs(tmp_path: Path) -> None:
    config = configure(tmp_path, FILE)
    assert check(tmp_path / "options.yml") == []
    told = dry_run(config)
    assert told.problems == []
    values = {entry.key: entry.value for entry in told.iterations[0].state}
    assert values["error"] == values["student_error"] == "float32 (2,)"
    assert values["made"] == "float32 (2, 3, 16, 16)"
    assert values["strip"] == "float32 (2, 3, 16, 64)"  # four steps
    run = trainer(tmp_path, FILE)
    run.run()
    assert {"generator/diffusion", "student/consistency"} <= rows(tmp_path / "run", "train")[-1].keys()
    assert (tmp_path / "run/visuals/strip/3.png").is_file()
    words = " ".join(explain(config, FILE).split())
    assert "diffusion_sample with generator and worse, reads lq" in words
    assert "Injector error: diffusion with generator and level" in words


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generator.injectors.error.process.shedule=cosine", "process 'vp' has no option 'shedule'; did you mean 'schedule'?"),
        ("generator.injectors.error.times.type=loss_moment", "no distribution of times is called 'loss_moment'"),
        ("generator.injectors.error.weighting.gamma=-1", "expected a number greater than 0, found -1"),
        ("generator.injectors.made.sampler.type=huen", "no sampler is called 'huen'; did you mean 'heun'?"),
        ("generator.injectors.made.guide=wors", "no network is called 'wors'"),
        ("generator.injectors.made.like=lqq", "'lqq'"),
        ("generator.injectors.error.log_variance=null", "no loss of this step reaches the network 'level'"),
        ("student.injectors.consistency.target=teacher", "expected one of own, average"),
        ("generator.losses.diffusion.key=made", "this loss reaches no network"),
    ],
)
def test_mistakes_are_found_without_running_anything(override: str, message: str, tmp_path: Path) -> None:
    configure(tmp_path, FILE)
    errors = [str(each) for each in check(tmp_path / "options.yml", [f"steps.{override}"]) if each.severity == "error"]
    assert any(message in error for error in errors), errors


def test_what_does_not_go_together_is_found_by_a_rehearsal(tmp_path: Path) -> None:
    wrong = configure(tmp_path, FILE.replace("prediction: v\n        weighting", "prediction: eps\n        weighting"))
    (problem,) = [each for each in dry_run(wrong).problems if each.severity == "error"]
    assert "predict v or x0" in str(problem)
    assert problem.path == "steps.generator.injectors.error"


def test_the_command_rehearses_a_file(tmp_path: Path) -> None:
    path = tmp_path / "options.yml"
    path.write_text(f"plugins: [{Path(__file__).with_name('toys.py')}]\n{FILE}")
    command = [sys.executable, "-m", "dlas", "check", "--dry", "-opt", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps.generator.injectors.made" in done.stdout
