"""Recipes of TorToiSe, each with small networks on a few clips: two iterations with all that they have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlas.archs import create_network
from dlas.config import load
from dlas.engine.trainer import Trainer
from spoken import MEL_NORMS, TOKENIZER, corpus
from test_training import assert_losses_reach_their_networks

RECIPES = Path(__file__).parents[1] / "recipes/tortoise"
FINE_TUNING = ["finetune_speaker", "finetune_language"]
STAGES = ["dvae", "autoregressive", "clvp", "diffusion", "diffusion_latents", "random_latents", "classifier"]
FIXTURES = Path(__file__).parent / "parity/fixtures/tortoise"

SMALL = {
    "lucidrains_dvae": {"num_tokens": 8, "codebook_dim": 4, "hidden_dim": 4, "num_resnet_blocks": 1},
    "unified_voice2": {"layers": 1, "model_dim": 8, "heads": 2, "max_text_tokens": 30, "max_mel_tokens": 40},
    "clvp2": {
        **{f"dim_{part}": 8 for part in ("text", "speech", "latent")},
        **{f"{part}_enc_depth": 1 for part in ("text", "speech")},
        **{f"{part}_heads": 1 for part in ("text", "speech")},
    },
    "diffusion_tts_flat": {"model_channels": 8, "num_layers": 1, "in_latent_channels": 8, "num_heads": 2},
    "mini_audio_encoder_classifier": {"base_channels": 8, "depth": 2, "embedding_dim": 8, "resnet_blocks": 1},
    "univnet": {"channel_size": 2, "noise_dim": 4},
}
"""Options of each network that make it small, and leave alone what its neighbours go by."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The list of eight clips by two speakers, 0.6 to 0.9 s each."""
    return corpus(tmp_path_factory.mktemp("clips"), speakers=2, clips=4, seconds=0.6)


def shrunk(stage, clips, folder, **pretrained):
    """A recipe as small as it gets."""
    path = RECIPES / f"{stage}.yml"
    config = load(path)
    told = {"path.experiments": folder, "path.pretrain": json.dumps(pretrained), "train.niter": 2, "precision": "fp32"}
    told |= {
        "datasets.train.batch_size": 4,
        "datasets.train.n_workers": 0,
        "logger.print_freq": 1,
        "logger.tensorboard": "false",
    }
    for phase, data in config.datasets.items():
        own = {"path": clips if data.mode == "paired_voice_audio" else clips.parent}
        if data.mode == "paired_voice_audio":
            own |= {"fetcher_mode": "jsonl", "tokenizer_vocab": TOKENIZER, "max_wav_length": 19000}
            own |= {"conditioning_length": 4704} if data.options.get("load_conditioning") else {}
        else:
            own |= {"pad_to_samples": 3840, "min_length": 3840}
        told |= {f"datasets.{phase}.{key}": value for key, value in own.items()}
    told |= {"train.val_freq": 2} if "val" in config.datasets else {}
    for name, network in config.networks.items():
        if network.which_model == "random_latent_converter":
            told[f"networks.{name}.channels"] = {"rlg_auto": 8, "rlg_diffuser": 16}[name]
        told |= {f"networks.{name}.{key}": value for key, value in SMALL.get(network.which_model, {}).items()}
    for step, section in config.steps.items():
        for name, injector in section.injectors.items():
            here = f"steps.{step}.injectors.{name}"
            if "mel_norm_file" in injector.options:
                told[f"{here}.mel_norm_file"] = MEL_NORMS
            if injector.type == "gpt_voice_latent":
                told[f"{here}.conditioning_length"] = 3000
    if stage == "random_latents":
        told |= {"steps.auto.injectors.noise.shape": "[8]", "steps.diffuser.injectors.noise.shape": "[16]"}
        told["steps.diffuser.injectors.start.clip_size"] = 4000
    if stage == "classifier":
        told |= {"steps.classifier.injectors.noise.shape": "[4, 16]", "steps.classifier.injectors.fake.clip_size": 3840}
    return load(path, [f"{key}={value}" for key, value in told.items()])


@pytest.mark.parametrize("stage", STAGES)
def test_recipes_train_shrunk(stage, clips, tmp_path):
    run = Trainer(shrunk(stage, clips, tmp_path))
    assert_losses_reach_their_networks(run)
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in run.networks.items()}
    assert run.run().step == 2
    for name, network in run.networks.items():
        moved = any(not p.equal(q) for p, q in zip(network.parameters(), before[name], strict=True))
        assert moved == run.config.networks[name].trainable, name
    assert run.progress.bad_files == {} or stage in ("autoregressive", "diffusion", "diffusion_latents", "clvp")
    assert all("max_wav_length is 19000" in reason for reason in run.progress.bad_files.values())
    rows = [json.loads(line) for line in (tmp_path / run.config.name / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.tensor(value).isfinite() for row in rows for value in row.values() if isinstance(value, float))
    validated = [row for row in rows if row["phase"] == "val"]
    assert len(validated) == ("val" in run.config.datasets)
    assert all(row.keys() >= set(run.config.eval.values) for row in validated)


def test_every_recipe_is_tried():
    elsewhere = ["vocoder"]  # test_vocoder.py
    assert sorted(path.stem for path in RECIPES.glob("*.yml")) == sorted([*STAGES, *FINE_TUNING, *elsewhere])


@pytest.mark.parametrize(
    ("stage", "network", "manifest"),
    [
        ("autoregressive", "gpt", "autoregressive"),
        ("diffusion", "decoder", "diffusion_decoder"),
        ("clvp", "clvp", "clvp2"),
        ("random_latents", "gpt", "autoregressive"),
        ("random_latents", "decoder", "diffusion_decoder"),
        ("random_latents", "rlg_auto", "rlg_auto"),
        ("random_latents", "rlg_diffuser", "rlg_diffuser"),
        ("classifier", "classifier", "classifier"),
    ],
)
def test_networks_of_the_recipes_are_those_of_the_published_weights(stage, network, manifest):
    section = load(RECIPES / f"{stage}.yml").networks[network]
    with torch.device("meta"):
        built = create_network({"which_model": section.which_model, **section.options})
    told = json.loads((FIXTURES / f"manifest_{manifest}.json").read_text())
    assert {key: list(value.shape) for key, value in built.state_dict().items()} == {
        key: shape for key, (shape, _) in told["state_dict"].items()
    }


def test_stages_begin_with_what_the_stages_before_leave():
    configs = {stage: load(RECIPES / f"{stage}.yml") for stage in STAGES}
    left = {}
    for config in configs.values():
        folder = f"experiments/{config.name}/checkpoints/{config.train.niter}"
        for step in config.steps.values():
            ending = ".ema.safetensors" if config.train.ema.enabled else ".safetensors"
            left |= {f"{folder}/{name}{ending}": config.networks[name] for name in step.trained}
    for stage, config in configs.items():
        for name, path in config.path.pretrain.items():
            if path.startswith("experiments/"):
                same_keys(left[path], config.networks[name], (stage, name))


def same_keys(one, two, where):
    networks = []
    for section in (one, two):
        with torch.device("meta"):
            networks.append(create_network({"which_model": section.which_model, **section.options}))
    first, second = ({key: value.shape for key, value in network.state_dict().items()} for network in networks)
    assert first == second, where


@pytest.mark.parametrize("recipe", FINE_TUNING)
def test_fine_tuning_begins_with_the_published_network(recipe, clips, tmp_path):
    """As the published file, shrunk: a tokenizer's vocabulary of its own for the language, no weight moved for the speaker."""
    small = SMALL["unified_voice2"]
    torch.manual_seed(0)
    published = create_network(
        {"which_model": "unified_voice2", **small, "max_conditioning_inputs": 2, "number_text_tokens": 255}
    )
    torch.save(published.state_dict(), tmp_path / "autoregressive.pth")
    run = Trainer(shrunk(recipe, clips, tmp_path, gpt=str(tmp_path / "autoregressive.pth")))
    assert_losses_reach_their_networks(run)
    own = {name: value.clone() for name, value in run.networks["gpt"].state_dict().items()}
    fresh = {name for name, value in published.state_dict().items() if not own[name].equal(value)}
    assert fresh == ({"text_embedding.weight", "text_head.weight", "text_head.bias"} if "language" in recipe else set())
    assert run.run().step == 2
    after = run.networks["gpt"].state_dict()
    moved = {name for name in own if not after[name].equal(own[name])}
    if "speaker" in recipe:
        assert moved == {f"gpt.h.0.{name}.lora_{x}" for name in ("attn.c_attn", "mlp.c_fc") for x in "ab"}
        assert own.keys() - published.state_dict().keys() == moved
    else:
        assert {"text_embedding.weight", "gpt.h.0.attn.c_attn.weight", "mel_head.weight"} <= moved
