"""The files that TorToiSe was published as: entries, shapes and containers as their manifests tell, with numbers of our own."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

import toys  # noqa: F401  # registers its components
from dlas.config import load
from dlas.engine import fitting
from dlas.engine.build import build_networks
from dlas.errors import CheckpointError
from dlas.inference.speech.models import Models
from dlas.interop import state_dicts
from dlas.registry import ARCHS
from tiny_speech import TOKENIZER

FIXTURES = Path(__file__).parent / "parity/fixtures/tortoise"
NETWORKS = {
    "autoregressive": "unified_voice2",
    "clvp2": "clvp2",
    "cvvp": "cvvp",
    "diffusion_decoder": "diffusion_tts_flat",
    "vocoder": "univnet",
    "rlg_auto": "random_latent_converter",
    "rlg_diffuser": "random_latent_converter",
    "classifier": "mini_audio_encoder_classifier",
    "dvae": "lucidrains_dvae",
}
LARGE = ("autoregressive", "clvp2", "diffusion_decoder")
"""Hundreds of millions of weights: built without memory."""
pytestmark = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
TYPES = {"uint8": torch.uint8, "float32": torch.float32, "bool": torch.bool, "int64": torch.int64}


@pytest.fixture
def numbers_are_good(monkeypatch):
    """Of a thousand million numbers, all of them alike, none is looked at."""
    monkeypatch.setattr(state_dicts, "_refuse_bad_values", lambda *_: None)


def manifest(name):
    return json.loads((FIXTURES / f"manifest_{name}.json").read_text())


def tensor(shape, kind, value):
    """One number, as often as it takes; a file of it is small."""
    return torch.tensor(value, dtype=TYPES[kind.partition(" ")[0]]).expand(shape)


def publish(name, folder, **more):
    """Writes NAME.pth as it was published."""
    told = manifest(name)
    entries = {key: tensor(shape, kind, 0.01 * (i + 1)) for i, (key, (shape, kind)) in enumerate(told["state_dict"].items())}
    older = told.get("legacy_buffers_in_published_checkpoint", {}).get("keys", {})
    entries |= {key: tensor(shape, kind, 1) for key, (shape, kind) in older.items()} | more
    content = entries
    if name == "vocoder":  # UnivNet's public training state
        optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
        discriminator = {"MRD.convs.0.weight_g": torch.zeros(2)}
        content = {"model_g": entries, "model_d": discriminator, "optim_g": optimizer, "step": 3, "epoch": 1, "hp_str": "x"}
    torch.save(content, folder / f"{name}.pth")
    return entries


def configured(name, folder):
    entry = ARCHS.find(NETWORKS[name])
    options = {key: value for key, value in manifest(name)["hyperparameters"].items() if entry.parameter(key) is not None}
    path = folder / "options.yml"
    text = {
        "name": "x",
        "datasets": {"val": {"mode": "toy_pairs"}},
        "networks": {"net": {"which_model": NETWORKS[name], **options, "trainable": False}},
        "eval": {"output_state": "hq"},
        "path": {"pretrain": {"net": str(folder / f"{name}.pth")}},
    }
    path.write_text(json.dumps(text))  # YAML, too
    return load(path, mode="test")


@pytest.mark.parametrize("name", NETWORKS)
def test_published_files_are_loaded_by_name(name, tmp_path, numbers_are_good):
    written = publish(name, tmp_path)
    config = configured(name, tmp_path)
    device = torch.device("meta" if name in LARGE else "cpu")
    with device:
        network = build_networks(config, device)["net"]
    assert sum(parameter.numel() for parameter in network.parameters()) == manifest(name)["n_parameters"]
    if name not in LARGE:
        constants = ("inv_freq",)
        own = {key: value for key, value in network.state_dict().items() if not key.endswith(constants)}
        assert len(own) >= len(written) - 2
        assert all(value.equal(written[key].to(value.dtype)) for key, value in own.items())


@pytest.mark.parametrize("name", ["rlg_auto", "vocoder"])
def test_what_does_not_belong_there_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "fitting_options", partial(fitting.fitting_options, seconds=0.1))
    publish(name, tmp_path, **{"another.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"not in the network \(1\): another.weight"):
        build_networks(configured(name, tmp_path), torch.device("cpu"))


def test_aliases_that_tortoise_tts_adds_when_it_speaks_are_passed_over(tmp_path):
    width = tensor([8194, 1024], "float32", 1.0)
    publish("autoregressive", tmp_path, **{"gpt.wte.weight": width, "inference_model.lm_head.1.weight": width})
    with torch.device("meta"):
        build_networks(configured("autoregressive", tmp_path), torch.device("meta"))


def test_dlas_speak_reads_the_published_folder(tmp_path, numbers_are_good):
    """At full size, without memory."""
    for name in NETWORKS:
        publish(name, tmp_path)
    torch.save(-torch.linspace(1, 9, 80), tmp_path / "mel_norms.pth")
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.json")
    with torch.device("meta"):
        models = Models.load(tmp_path, torch.device("meta"))
    assert models.gpt.gpt.channels == models.decoder.channels == 1024
    assert models.cvvp is not None
    assert models.random_voices is not None
    assert models.mel_norms.shape == (80,)
