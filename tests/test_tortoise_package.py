"""What is trained here loads, strictly, in the classes of the package tortoise-tts.

pip install --no-deps tortoise-tts==3.0.0 transformers==4.31.0 rotary_embedding_torch
pip install torchaudio librosa progressbar scipy inflect unidecode 'tokenizers<0.14' 'huggingface_hub<1' 'numpy<2'
"""

from __future__ import annotations

import importlib

import pytest
from safetensors.torch import load_file

from dlas.archs import create_network
from dlas.engine.trainer import Trainer
from dlas.inference.adapters import write_merged
from dlas.inference.model import find
from dlas.interop.state_dicts import load_into
from dlas.registry import ARCHS
from test_speech_recipes import clips, shrunk  # noqa: F401  # a fixture
from test_tortoise_files import NETWORKS, manifest

pytest.importorskip("tortoise.models.autoregressive", reason="tortoise-tts is not installed", exc_type=ImportError)

CLASSES = {
    "autoregressive": ("autoregressive", "UnifiedVoice"),
    "clvp2": ("clvp", "CLVP"),
    "cvvp": ("cvvp", "CVVP"),
    "diffusion_decoder": ("diffusion_decoder", "DiffusionTts"),
    "vocoder": ("vocoder", "UnivNetGenerator"),
    "rlg_auto": ("random_latent_generator", "RandomLatentConverter"),
    "rlg_diffuser": ("random_latent_generator", "RandomLatentConverter"),
    "classifier": ("classifier", "AudioMiniEncoderWithClassifierHead"),
}
TRAINED = [
    ("autoregressive", "gpt", "autoregressive"),
    ("finetune_language", "gpt", "autoregressive"),
    ("clvp", "clvp", "clvp2"),
    ("diffusion", "decoder", "diffusion_decoder"),
    ("diffusion_latents", "decoder", "diffusion_decoder"),
    ("random_latents", "rlg_auto", "rlg_auto"),
    ("random_latents", "rlg_diffuser", "rlg_diffuser"),
    ("classifier", "classifier", "classifier"),
]


def theirs(file, options):
    """The package's network, as published but for `options`."""
    module, name = CLASSES[file]
    given = manifest(file)["hyperparameters"]
    given |= {key: value for key, value in options.items() if key in given}
    return getattr(importlib.import_module(f"tortoise.models.{module}"), name)(**given)


@pytest.mark.parametrize("file", CLASSES)
def test_a_network_of_ours_loads_there_and_one_of_theirs_here(file):
    options = {
        key: value
        for key, value in ARCHS.get(NETWORKS[file]).tiny()[0].items()
        if key not in ("mel_channels", "number_text_tokens")
    }
    other = theirs(file, options)
    told = manifest(file)["hyperparameters"]
    more = {key: value for key, value in told.items() if ARCHS.find(NETWORKS[file]).parameter(key) is not None}
    network = create_network({"which_model": NETWORKS[file], **more, **options})
    other.load_state_dict(network.state_dict(), strict=True)
    assert load_into(network, other.state_dict(), source="tortoise-tts") == []


@pytest.mark.parametrize(("stage", "name", "file"), TRAINED)
def test_what_a_run_leaves_loads_there(stage, name, file, clips, tmp_path):  # noqa: F811
    run = Trainer(shrunk(stage, clips, tmp_path))
    run.run()
    saved = load_file(run.folder.checkpoints / str(run.progress.step) / f"{name}.safetensors")
    theirs(file, run.config.networks[name].options).load_state_dict(saved, strict=True)


def test_merged_adapters_load_there(clips, tmp_path):  # noqa: F811
    run = Trainer(shrunk("finetune_speaker", clips, tmp_path))
    run.run()
    write_merged(find(run.folder.path, "gpt"), tmp_path / "merged.safetensors")
    other = theirs("autoregressive", run.config.networks["gpt"].options)
    other.load_state_dict(load_file(tmp_path / "merged.safetensors"), strict=True)
