"""The recipe of the vocoder, with small networks on a few clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlas.config import load
from dlas.engine.trainer import Trainer
from runs import batches, rows
from spoken import corpus
from test_training import assert_losses_reach_their_networks

RECIPE = Path(__file__).parents[1] / "recipes/tortoise/vocoder.yml"
SMALL = [
    "networks.vocoder.channel_size=2", "networks.vocoder.noise_dim=4", "networks.discriminator.spectrogram_channels=2",
    "networks.discriminator.period_channels=[2, 2]", "datasets.train.batch_size=2", "datasets.train.n_workers=0",
    "datasets.train.pad_to_samples=4096", "datasets.train.min_length=4096", "datasets.val.pad_to_samples=8192",
    "datasets.val.min_length=8192", "steps.vocoder.injectors.noise.shape=[4, 16]", "precision=fp32", "logger.print_freq=1",
    "steps.vocoder.injectors.longer_noise.shape=[4, 32]", "train.val_freq=3", "train.niter=3", "eval.save_images=true",
]  # fmt: skip


@pytest.fixture
def told(tmp_path: Path) -> list[str]:
    clips = corpus(tmp_path / "clips", speakers=1, clips=3, rate=24000, seconds=0.4).parent
    return [*SMALL, f"datasets.train.path={clips}", f"datasets.val.path={clips}", f"path.experiments={tmp_path}"]


def test_the_recipe_trains_and_measures_sound(told: list[str], tmp_path: Path) -> None:
    """With the discriminators from the beginning."""
    gates = [f"steps.{step}.losses.gan.after=0" for step in ("vocoder", "discriminator")]
    run = Trainer(load(RECIPE, [*told, *gates]))
    assert_losses_reach_their_networks(run)
    judge = [p.detach().clone() for p in run.networks["discriminator"].parameters()]
    assert run.run().step == 3
    assert all(not p.equal(q) for p, q in zip(run.networks["discriminator"].parameters(), judge, strict=True))
    last = rows(tmp_path / "tortoise_vocoder", "train")[-1]
    assert last["vocoder/gan"] > 0
    assert last["discriminator/gan"] > 0
    stft = last["vocoder/stft_spectral_convergence"] + last["vocoder/stft_log_magnitude"]
    assert last["vocoder/stft"] == pytest.approx(stft, rel=1e-4)
    figures = rows(tmp_path / "tortoise_vocoder", "val")[-1]
    assert figures["multi_resolution_stft"] > 0
    assert figures["mel_cepstral_distortion"] > 0
    assert 0 <= figures["voicing_error"] <= 1
    assert "f0_error" in figures
    folder = tmp_path / "tortoise_vocoder/val/val/00000"
    assert sorted(path.name for path in folder.iterdir()) == ["3.png", "3.wav", "hq.png", "hq.wav"]
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tortoise_vocoder/tb"))
    events.Reload()
    assert {"val/00000", "val/00001"} <= set(events.Tags()["audio"])


def test_the_discriminator_waits(told: list[str], tmp_path: Path) -> None:
    run = Trainer(load(RECIPE, [*told, "train.val_freq=0"]))
    judge = [p.detach().clone() for p in run.networks["discriminator"].parameters()]
    assert run.run().step == 3
    assert all(p.equal(q) for p, q in zip(run.networks["discriminator"].parameters(), judge, strict=True))
    assert not [key for key in rows(tmp_path / "tortoise_vocoder", "train")[-1] if "gan" in key]


def test_the_vocoder_learns(told: list[str]) -> None:
    """Forty iterations on the same clips bring it nearer."""
    run = Trainer(load(RECIPE, [*told, "steps.vocoder.optimizer_params.lr=1e-2", "networks.vocoder.channel_size=8"]))
    distances = []
    batch = batches(run, 1)[0]
    for _ in range(40):
        run.iterate({key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in batch.items()})
        distances.append(run.meter.read()["vocoder/stft"])
    assert distances[-1] < 0.8 * distances[0]
