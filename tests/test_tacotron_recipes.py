"""DL-Art-School's files for Tacotron 2, unedited but for sizes and places: they train, validate, and make sound."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dlas.archs import create_network
from dlas.config import load
from dlas.engine.results import as_pictures, measured
from dlas.engine.testing import run_test
from dlas.engine.trainer import Trainer
from dlas.layers.mel import HIGHEST, LOWEST
from dlas.observe.sounds import write_wav
from runs import rows
from spoken import corpus

RECIPES = Path(__file__).parent / "upstream-recipes/tacotron2"
SMALL = [
    f"networks.mel_gen.args.{option}"
    for option in (
        "encoder_kernel_size=3", "encoder_n_convolutions=1", "encoder_embedding_dim=8", "symbols_embedding_dim=8",
        "decoder_rnn_dim=8", "prenet_dim=4", "attention_rnn_dim=8", "attention_dim=4", "attention_location_n_filters=2",
        "attention_location_kernel_size=3", "postnet_embedding_dim=4", "postnet_kernel_size=3", "postnet_n_convolutions=2",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of half a second in the layout of LJSpeech's lists."""
    listed = corpus(tmp_path_factory.mktemp("clips"), speakers=2, clips=3, seconds=0.4)
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    path = listed.with_name("filelist.txt")
    path.write_text("".join(f"{each['file']}|{each['text']}\n" for each in lines))
    return path


def test_the_recipe_trains_and_validates_and_its_test_makes_sound(clips: Path, tmp_path: Path) -> None:
    run = Trainer(load(RECIPES / "train_tacotron2_lj.yml", [
        *SMALL, f"datasets.train.path={clips}", f"eval.evaluators.val.dataset.path={clips}", "datasets.train.batch_size=3",
        "datasets.train.n_workers=0", "train.niter=2", "train.val_freq=2", "logger.print_freq=1", "logger.visual_debug_rate=1",
        "logger.visuals=[mel_outputs, padded_mel, alignments]", f"path.experiments={tmp_path}",
    ]))  # fmt: skip
    before = {name: p.detach().clone() for name, p in run.networks["mel_gen"].named_parameters()}
    assert run.run().step == 2
    assert all(not p.equal(before[name]) for name, p in run.networks["mel_gen"].named_parameters() if "embedding" not in name)
    folder = tmp_path / "train_tacotron2_lj"
    row = rows(folder, "train")[-1]
    parts = [row[f"generator/tacotron_loss_{name}"] for name in ("mel_loss", "postnet_loss", "gate_loss")]
    assert row["generator/tacotron_loss"] == pytest.approx(sum(parts), rel=1e-4)
    assert rows(folder, "val")[-1]["tacotron_error"] > 0
    for key, height in {"mel_outputs": 80, "padded_mel": 80}.items():  # in the first micro-batch is one clip
        picture = cv2.imread(str(folder / f"visuals/{key}/2.png"))
        assert picture.shape[0] == height
    assert cv2.imread(str(folder / "visuals/alignments/2.png")) is not None
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tb"))
    events.Reload()
    assert {"visuals/alignments", "visuals/padded_mel"} <= set(events.Tags()["images"])

    glow = ["n_flows=2", "n_group=8", "n_early_every=4", "n_early_size=2"]
    glow = [f"networks.waveglow.args.{each}" for each in glow]
    glow.append("networks.waveglow.args.WN_config={n_layers: 1, n_channels: 4, kernel_size: 3}")
    told = [*SMALL, *glow, f"datasets.train.path={clips}", f"path.experiments={tmp_path}"]
    config = load(RECIPES / "test_tacotron2_lj.yml", told, mode="test")
    section = config.networks["waveglow"]
    vocoder = create_network({"which_model": section.which_model, **section.options})
    torch.save(vocoder.state_dict(), tmp_path / "waveglow.pth")
    trained = folder / "checkpoints/2/mel_gen.ema.safetensors"
    told += [f"path.pretrain_model_mel_gen={trained}", f"path.pretrain_model_waveglow={tmp_path / 'waveglow.pth'}"]
    results = run_test(load(RECIPES / "test_tacotron2_lj.yml", told, mode="test"))
    (made,) = results.values()
    sounds = sorted(made.folder.glob("*.wav"))
    assert len(sounds) == 6
    with wave.open(str(sounds[0])) as file:
        assert file.getframerate() == 22050
        assert 0.4 <= file.getnframes() / 22050 < 0.45
    assert len(sorted(made.folder.glob("*.png"))) == 6


def test_the_hyperparameters_of_the_file_are_those_of_the_network() -> None:
    """DL-Art-School did not read what is nested under `args`."""
    config = load(RECIPES / "train_tacotron2_lj.yml", ["networks.mel_gen.args.prenet_dim=7"])
    assert config.networks["mel_gen"].options["prenet_dim"] == 7


class TestResults:
    def test_only_pictures_are_rounded(self) -> None:
        waves = torch.tensor([[0.1, -0.30001]])
        assert measured(waves).equal(waves)
        assert measured(torch.full((1, 1, 1, 1), 0.3)).item() == pytest.approx(76 / 255)

    def test_spectrograms_stand_upright(self) -> None:
        mel = torch.full((1, 3, 2), LOWEST)
        mel[0, 0] = HIGHEST  # the lowest frequency
        assert as_pictures(mel)[0, 0].tolist() == [[0, 0], [0, 0], [1, 1]]

    def test_alignments_are_drawn_as_they_are(self) -> None:
        alignments = torch.tensor([[[0.9, 0.1], [0.25, 0.75]]])
        assert as_pictures(alignments)[0, 0].equal(torch.tensor([[0.25, 0.75], [0.9, 0.1]]))

    def test_sound_is_drawn_as_a_spectrogram(self) -> None:
        tone = torch.sin(torch.arange(4096) * 2 * np.pi * 0.25)  # half way up to the highest frequency
        picture = as_pictures(tone[None, None])
        assert picture.shape == (1, 1, 80, 17)
        assert 0 < picture[0, 0, :, 8].argmax() < 20  # on the mel scale that is near the top
        assert as_pictures(tone[None, None, :100]) is None

    def test_other_shapes_are_not_drawn(self) -> None:
        assert as_pictures(torch.zeros(3)) is None

    def test_from_minus_one(self) -> None:
        assert as_pictures(torch.zeros(1, 2, 2), True).unique().tolist() == [0.5]


def test_wav_files(tmp_path: Path) -> None:
    write_wav(tmp_path / "new/a.wav", torch.tensor([0.5, -2.0, float("nan"), 1.0]), 8000)
    with wave.open(str(tmp_path / "new/a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [16384, -32767, 0, 32767]
