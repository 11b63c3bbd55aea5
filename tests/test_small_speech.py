"""The small TorToiSe of recipes/tortoise/small, shrunk: all of its files train, and what they leave speaks and is measured."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import threading
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from dlas.cli.main import main as dlas
from dlas.config import load
from dlas.data.audio.unsupervised import UnsupervisedAudio
from dlas.engine.trainer import Trainer
from dlas.layers.mel import MelSpectrogram
from spoken import tone

SMALL = Path(__file__).parents[1] / "recipes/tortoise/small"
STAGES = ("dvae", "vocoder", "autoregressive", "clvp", "diffusion", "diffusion_latents")
OVERRIDES = [
    "precision=fp32",
    "train.niter=2",
    "train.warmup_iter=1",
    "logger.print_freq=1",
    "logger.save_checkpoint_freq=2",
    "logger.tensorboard=false",
    "datasets.train.batch_size=2",
    "vocoder:networks.vocoder={which_model: univnet, channel_size: 2, noise_dim: 2}",
    "vocoder:steps.vocoder.injectors.noise.shape=[2, 32]",
    "autoregressive:networks.gpt.layers=1",
    "autoregressive:train.val_freq=2",
    "clvp:networks.clvp.text_enc_depth=1",
    "clvp:networks.clvp.speech_enc_depth=1",
    "diffusion:networks.decoder.num_layers=1",
    "diffusion_latents:networks.decoder.num_layers=1",
    "diffusion_latents:networks.gpt.layers=1",
]


def imported(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scripts():
    """The scripts by name, and their modules gone again at the end."""
    before = dict(sys.modules)
    found = {name: imported(SMALL / f"{name}.py") for name in ("synthesise", "train_all", "measure")}
    found["mel_norms"] = imported(SMALL.parent / "mel_norms.py")
    yield found
    for name in found:
        sys.modules.pop(name, None)
    sys.modules.update({name: module for name, module in before.items() if name in found})


@pytest.fixture(scope="module")
def trained(scripts, tmp_path_factory):
    """A folder in which two voices that only hum were learned by every file of the recipe, two iterations each."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)

        def hum(pitch):
            drawn = random.Random(int(pitch))
            return lambda text: tone(0.8 + 0.2 * drawn.random(), 22050, pitch)

        voices = {"low": hum(120.0), "high": hum(240.0)}
        Path("datasets/commands").mkdir(parents=True)
        written = scripts["synthesise"].write(Path("datasets/commands"), voices, {"low": 40, "high": 40}, held_out=3)
        assert len(list(written)) == 2
        recordings = Path("datasets/asterisk/clips/en")
        recordings.mkdir(parents=True)
        for name in ("one", "two"):
            soundfile.write(recordings / f"{name}.flac", tone(0.9, 16000), 16000)
        for part, name in (("train", "one"), ("valid", "two")):
            entry = {"file": f"clips/en/{name}.flac", "text": name, "speaker": "en"}
            Path(f"datasets/asterisk/{part}.jsonl").write_text(json.dumps(entry) + "\n")
        patch.setattr(scripts["train_all"], "run", in_this_process(scripts["mel_norms"]))
        scripts["train_all"].prepare(vocabulary=100)
        for stage in STAGES:
            run = Trainer(load(SMALL / f"{stage}.yml", scripts["train_all"].overrides_of(stage, OVERRIDES)))
            assert run.run().step == 2
        scripts["train_all"].assemble(OVERRIDES)
    return folder


def in_this_process(mel_norms):
    """What runs the two commands of the preparation without a process for each."""

    def run(command):
        arguments = command[3:] if command[1] == "-m" else [*command[2:], "--every", "1"]
        assert (dlas if command[1:3] == ["-m", "dlas"] else mel_norms.main)(arguments) == 0
        return 0.0

    return run


def first_text():
    """Of the clip that is measured first: of the first voice."""
    return json.loads(Path("datasets/commands/valid.jsonl").read_text().splitlines()[3])["text"]  # "high" is before "low"


def test_the_networks_of_the_recipe_speak(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    told = yaml.safe_load(Path("models/small/speech.yml").read_text())
    assert told["clip_samples"] == 11025 and told["decoder_clip_samples"] == 12000
    command = ["speak", "anna will call peter", "--models", "models/small", "--voice", "datasets/commands/valid/low"]
    command += ["--candidates", "2", "--max-codes", "12", "--sampler", "dpmpp_2m", "--steps", "2", "--guidance", "0"]
    assert dlas([*command, "-o", str(tmp_path / "said.wav")]) == 0
    sound, rate = soundfile.read(tmp_path / "said.wav")
    assert rate == 24000 and len(sound) % 256 == 0 and 0 < len(sound) <= 12 * 1024 * 24000 / 22050 + 256
    assert abs(sound).max() > 0


def test_the_networks_are_measured(trained, scripts, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    measure = scripts["measure"]
    monkeypatch.setattr(measure, "WAYS", [("ancestral", 3), ("ddim", 2), ("dpmpp_2m", 2)])
    options = ["--clips", "4", "--said", "1", "--sampled", "1", "--candidates", "2", "--steps", "2", "--max-codes", "8"]
    overrides = [word for each in OVERRIDES for word in ("--set", each)]
    recogniser = tmp_path / "recogniser.py"
    recogniser.write_text(f"def transcribe(clips, rate):\n    return [{first_text()!r} for clip in clips]\n")
    monkeypatch.setattr(measure.subprocess, "run", lambda command, check: dlas(command[3:]))
    options += ["--recogniser", str(recogniser)]
    assert measure.main(["-o", str(tmp_path / "measured"), *options, *overrides]) == 0
    figures = json.loads((tmp_path / "measured/figures.json").read_text())
    assert figures["clips"] == 4
    assert figures["autoencoder"]["codes"] == 512 and 0 < figures["autoencoder"]["codes_used"] <= 1
    assert {"synthetic_rms_error_db", "recorded_mean_spectrum_rms_error_db"} <= figures["autoencoder"].keys()
    assert figures["codes"]["unigram"] > figures["codes"]["bigram"] > 1  # of hums, whose codes follow each other
    assert figures["clvp"]["chance"] == 1 / 32
    assert figures["decoder"]["bridge"] < figures["decoder"]["mean"]
    assert [row["steps"] for row in figures["samplers"]] == [3, 2, 2]
    assert figures["said"]["spoken"]["word_error_rate"] == 0 and figures["said"]["spoken"]["sentences_found"] == 1
    ways = {"original", "vocoder", "autoencoder", "decoder", "spoken_without_decoder", "spoken_1", "spoken"}
    assert {path.name for path in (tmp_path / "measured").iterdir() if path.is_dir()} == ways
    assert (tmp_path / "measured/spoken.jpg").is_file()
    assert "<polyline" in (tmp_path / "measured/samplers.svg").read_text()


def test_the_autoencoder_is_trained_before_what_reads_it(scripts, trained, monkeypatch):
    monkeypatch.chdir(trained)
    script, done, begun = scripts["train_all"], [], threading.Event()

    def train(stage, overrides, times):
        if stage == "dvae":
            assert begun.wait(10)  # the vocoder does not wait for it
        begun.set()
        done.append(stage)
        times[stage] = {"processor": 60.0}

    monkeypatch.setattr(script, "train", train)
    assert script.main([word for each in OVERRIDES for word in ("--set", each)]) == 0
    assert sorted(done) == sorted(STAGES)
    assert done.index("dvae") < min(done.index(stage) for stage in ("autoregressive", "clvp", "diffusion"))
    assert done[-1] == "diffusion_latents"

    def broken(stage, overrides, times):
        raise SystemExit("the disk is full")

    monkeypatch.setattr(script, "train", broken)
    with pytest.raises(SystemExit, match="disk"):
        script.main([])


def test_files_name_the_weights_that_the_others_leave(scripts):
    script = scripts["train_all"]
    assert sorted(path.stem for path in SMALL.glob("*.yml")) == sorted(STAGES) == sorted(script.STAGES)
    for stage in STAGES:
        told = load(SMALL / f"{stage}.yml").path.pretrain
        assert told == {name: str(script.weights(*source, [])) for name, source in script.BEGINS_WITH.get(stage, {}).items()}


def test_sentences_are_different_ones_and_the_same_each_time(scripts):
    sentences = scripts["synthesise"].sentences
    assert len(set(sentences(500))) == 500 and sentences(500) == sentences(500)
    assert not any("{" in sentence for sentence in sentences(500))


def test_held_out_recordings_are_not_trained_on(trained, monkeypatch):
    monkeypatch.chdir(trained)
    for stage in ("dvae", "vocoder"):
        section = load(SMALL / f"{stage}.yml").datasets["train"]
        files = {str(file) for file in UnsupervisedAudio("train", **section.options).files}
        assert "datasets/asterisk/clips/en/one.flac" in files and "datasets/asterisk/clips/en/two.flac" not in files
        assert not any("valid" in file for file in files)


def test_mel_norms_are_of_all_frames(scripts, tmp_path):
    sounds = [tone(0.5, 22050, 200.0), tone(1.0, 22050, 300.0)]
    for number, sound in enumerate(sounds):
        soundfile.write(tmp_path / f"{number}.wav", sound, 22050, subtype="FLOAT")
    mels = [MelSpectrogram(power=2, scale="htk")(torch.from_numpy(sound)[None])[0] for sound in sounds]
    expected = torch.cat(mels, 1).abs().mean(1)
    torch.testing.assert_close(scripts["mel_norms"].mel_norms([tmp_path / "0.wav", tmp_path / "1.wav"]), expected)
