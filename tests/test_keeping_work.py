"""Nothing that was trained is lost or spoilt: faults while a run goes on, and what a restart accepts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toys
from dlas.config import check
from dlas.data.base import BadSample
from dlas.engine import checkpoint
from dlas.engine.trainer import Trainer
from dlas.errors import CheckpointError, DataError, TrainingError, UserError
from runs import assert_same_tensors, checkpoint_tensors, rows, trainer
from test_training import interrupt_after

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("when", [4, 6], ids=["before a step", "before saving"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, when):
    original = Trainer.iterate

    def iterate(self, batch, log_gradients=False):
        result = original(self, batch, log_gradients)
        if self.progress.step == when:
            self.networks["generator"].last.bias.data.fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "iterate", iterate)
    with pytest.raises(TrainingError, match=r"weights of generator.*newest checkpoint is .*/3\."):
        trainer(tmp_path, toys.PSNR, "logger.print_freq=100", "train.val_freq=0").run()
    newest = checkpoint.newest(tmp_path / "toy/checkpoints")
    assert newest is not None
    assert newest.name == "3"
    assert all(tensor.isfinite().all() for tensor in checkpoint_tensors(newest).values() if tensor.is_floating_point())


def test_steps_before_a_bad_file_are_saved(tmp_path, monkeypatch):
    original = toys.ToyPairs.__getitem__

    def broken(self, request):
        if self.training and request.position >= 20:
            raise BadSample("lost.png", "is gone")
        return original(self, request)

    monkeypatch.setattr(toys.ToyPairs, "__getitem__", broken)
    with pytest.raises(DataError, match=r"lost\.png"):
        trainer(tmp_path, toys.PSNR, "logger.save_checkpoint_freq=100").run()
    assert (tmp_path / "toy/checkpoints/latest").read_text() == "5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((" generator: {which", " renamed: {which"), "holds nothing of"),
        (("steps:\n  generator:", "steps:\n  renamed:"), "holds nothing of steps.renamed"),
        (("optimizer: adam", "optimizer: sgd"), "holds the state of Adam, and the optimiser is now SGD"),
    ],
)
def test_a_restart_never_goes_on_with_fresh_weights_unasked(tmp_path, change, message):
    trainer(tmp_path, toys.PSNR).run()
    text = toys.PSNR.replace(*change).replace("niter: 8", "niter: 9")
    if "renamed: {which" in text:
        text = text.replace("training: generator", "training: renamed").replace("generator: generator,", "generator: renamed,")
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, text).run()


def test_an_average_that_is_switched_on_later_starts_from_the_trained_weights(tmp_path):
    trainer(tmp_path, toys.PSNR, "train.ema.enabled=false").run()
    run = trainer(tmp_path, toys.PSNR)
    run._restore()
    live = run.networks["generator"].state_dict()
    assert all(value.equal(live[name]) for name, value in run.averages.main["generator"].state_dict().items())


def test_a_run_with_a_schedule_of_torch_goes_on_when_it_is_made_longer(tmp_path):
    schedule = "train.lr_scheme={type: OneCycleLR, max_lr: 1e-2}"
    trainer(tmp_path, toys.PSNR, schedule).run()
    assert trainer(tmp_path, toys.PSNR, schedule, "train.niter=12").run().step == 12


def test_going_back_happens_once_and_sets_later_checkpoints_aside(tmp_path, monkeypatch):
    trainer(tmp_path, toys.PSNR).run()
    back = f"path.resume_state={tmp_path}/toy/checkpoints/3"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        trainer(tmp_path, toys.PSNR, back).run()
    names = {path.name.split("-")[0] for path in (tmp_path / "toy/checkpoints").iterdir()}
    assert {"6.set", "8.set"} <= names
    assert trainer(tmp_path, toys.PSNR, back).run().step == 8  # the same command: goes on from 5, not from 3 again
    assert [row["step"] for row in rows(tmp_path / "toy", "train")] == [2, 4, 6, 8]
    (aside,) = (tmp_path / "toy/checkpoints").glob("8.set-aside-*")
    assert_same_tensors(tmp_path / "toy/checkpoints/8", aside)


def test_one_run_folder_takes_one_run(tmp_path):
    first, second = trainer(tmp_path, toys.PSNR), trainer(tmp_path, toys.PSNR)
    with first.folder.locked(), pytest.raises(UserError, match="toy"):
        second.run()
    assert second.run().step == 8


def test_pictures_left_out_of_validation_are_named_once(tmp_path, monkeypatch, caplog):
    original = toys.ToyPairs.__getitem__

    def broken(self, request):
        if not self.training and request.index == 1:
            raise BadSample("bad.png", "is no image")
        return original(self, request)

    monkeypatch.setattr(toys.ToyPairs, "__getitem__", broken)
    monkeypatch.setattr(toys.ToyPairs, "on_bad_file", "skip")
    trainer(tmp_path, toys.PSNR).run()
    assert caplog.text.count("left out of validation: bad.png: is no image") == 1


def test_figures_that_are_not_finite_are_shown_and_are_never_the_best(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        toys.ToyGenerator, "forward", lambda self, x: self.last.bias.sum() * torch.full((1, 3, 16, 16), torch.nan)
    )
    run = trainer(tmp_path, toys.PSNR, "eval.weights=raw")
    means = run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None).means
    assert torch.isnan(torch.tensor(means["psnr"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=../up", "must be a folder below path.experiments"),
        ("datasets.val.name=../up", "must be a folder below the run's"),
        ("networks.optimizers={which_model: ToyGenerator, trainable: false}", "would fall on another file"),
        ("datasets.more={mode: toy_pairs, name: val}", "their figures would mix"),
    ],
)
def test_names_stay_in_their_folders(tmp_path, override, message):
    path = tmp_path / "options.yml"
    path.write_text(toys.PSNR)
    assert any(message in str(problem) for problem in check(path, [override]))


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'codes')!r}); from dlas.cli.main import main; main(['list', 'injectors'])"
    )
    listing = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    listing.stdout.read(1)
    listing.stdout.close()
    assert b"Traceback" not in listing.stderr.read()
    listing.wait(30)
