"""Scripts and claims of the recipes. That their files are right and train is in test_project.py and test_reference.py."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dlas.config import load
from dlas.data.images.digits import Digits
from dlas.diffusion import create_process
from dlas.engine.trainer import Trainer

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="module")
def overlap():
    spec = importlib.util.spec_from_file_location("overlap", RECIPES / "esrgan/overlap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Enlarged(nn.Module):
    """Every pixel made 4 x 4, and something added that depends on where in the input it lies."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return F.interpolate(x, scale_factor=4) + self.slope * torch.arange(4 * x.shape[-1])


def test_a_network_that_treats_all_places_alike_does_not_disagree_with_itself(overlap):
    images = torch.rand(2, 3, overlap.SIDE, overlap.SIDE, generator=torch.Generator().manual_seed(0))
    distance, detail = overlap.disagreement(Enlarged(0.0), images)
    assert distance == 0
    assert detail > 0.1


def test_what_depends_on_the_place_in_the_patch_is_measured(overlap):
    distance, _ = overlap.disagreement(Enlarged(0.001), torch.zeros(1, 3, overlap.SIDE, overlap.SIDE))
    # The patches to the right begin BORDER pixels further on; the one below does not: two pairs of three differ by the slope.
    assert distance == pytest.approx(2 / 3 * 0.001 * overlap.BORDER, rel=1e-4)


def test_the_measured_squares_are_those_of_the_recipe(overlap):
    step = load(RECIPES / "esrgan/translational_small.yml").steps["generator"]
    loss = step.losses["translational"]
    assert loss.options["patch_size"] == overlap.PATCH * overlap.SCALE
    assert loss.options["overlap"] == overlap.SHARED
    assert step.injectors["corners"].options["patch_size"] == overlap.PATCH


@pytest.mark.parametrize(("first", "second"), [("psnr", "gan"), ("small_psnr", "small_gan")])
def test_the_second_stage_starts_from_what_the_first_leaves(first, second):
    before, after = (load(RECIPES / f"esrgan/{name}.yml") for name in (first, second))
    expected = f"experiments/{before.name}/checkpoints/{before.train.niter}/generator.ema.safetensors"
    assert after.path.pretrain == {"generator": expected}
    assert after.networks["generator"].options == before.networks["generator"].options


@pytest.mark.parametrize("family", ["x4plus", "anime_6b"])
def test_so_do_those_of_real_esrgan(family):
    before, after = (load(RECIPES / f"realesrgan/{family}_{stage}.yml") for stage in ("psnr", "gan"))
    expected = f"experiments/{before.name}/checkpoints/{before.train.niter}/generator.ema.safetensors"
    assert after.path.pretrain == {"generator": expected}
    assert after.networks["generator"].options == before.networks["generator"].options


FULL = [path for path in sorted(RECIPES.rglob("*.yml")) if "small" not in path.name]
GENERATIVE = ("edm", "flow")
"""Folders of recipes that make pictures of nothing."""


def _named(path):
    return str(path.relative_to(RECIPES).as_posix())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (176, 208, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("path", [p for p in FULL if p.parent.name not in GENERATIVE], ids=_named)
def test_full_recipes_train_validate_and_save_shrunk(path, photographs, tmp_path):
    """Two steps with all that a recipe has, in small: its wiring and its data set are what it is about."""
    config = load(path)
    settings = [f"path.experiments={tmp_path}", "path.pretrain={}", "train.niter=2", "train.val_freq=2", "precision=fp32"]
    settings += ["datasets.train.batch_size=2", "datasets.train.n_workers=0", "logger.tensorboard=false"]
    settings += [f"datasets.{phase}.dataroot_gt={photographs}" for phase in ("train", "val")]
    if config.datasets["train"].mode == "degraded_images":
        settings += [f"datasets.train.{key}={size}" for key, size in (("target_size", 56), ("degradation_size", 112))]
    for name, network in config.networks.items():
        small = {"RRDBNet": {"nf": 8, "nb": 1, "gc": 4}, "SwinIR": {"embed_dim": 6, "depths": "[1]", "num_heads": "[1]"}}
        small |= {"discriminator_vgg_128_gn": {"nf": 8}, "UNetDiscriminatorSN": {"num_feat": 8}}
        settings += [f"networks.{name}.{key}={value}" for key, value in small[network.which_model].items()]
    if "feature" in config.steps["generator"].losses:
        settings.append("steps.generator.losses.feature.random_weights=true")
    run = Trainer(load(path, settings))
    assert run.run().step == 2
    assert (tmp_path / config.name / "checkpoints/2/generator.ema.safetensors").exists()


TINY = {
    "edm2_unet": {
        "model_channels": 8, "channel_mult": "[1, 2]", "num_blocks": 1, "attention_resolutions": "[2]", "channels_per_head": 8,
    },
    "dit": {"hidden_size": 16, "depth": 1, "num_heads": 2},
    "noise_level_variance": {},
}  # fmt: skip


@pytest.mark.parametrize("path", [p for p in FULL if p.parent.name in GENERATIVE], ids=_named)
def test_full_recipes_from_nothing_train_sample_and_save_shrunk(path, photographs, tmp_path):
    """As above; what is measured needs weights and statistics of millions of pictures, so here it is the pixels."""
    config = load(path)
    for number in range(2):
        (tmp_path / f"classes/{number}").mkdir(parents=True)
        shutil.copy(photographs / f"{number}.png", tmp_path / f"classes/{number}/0.png")
    settings = [f"path.experiments={tmp_path}", "train.niter=2", "train.val_freq=2", "precision=fp32", "eval.precision=fp32"]
    settings += ["datasets.train.batch_size=2", "datasets.train.n_workers=0", "logger.tensorboard=false"]
    settings += [f"datasets.{phase}.paths={tmp_path / 'classes'}" for phase in ("train", "val")]
    settings += ["eval.metrics=[fd_pca]", "eval.metric_options={fd_pca: {size: 8}}", "eval.injectors.sample.steps=2"]
    for name, network in config.networks.items():
        settings += [f"networks.{name}.{key}={value}" for key, value in TINY[network.which_model].items()]
    run = Trainer(load(path, settings))
    assert run.run().step == 2
    assert (tmp_path / config.name / "checkpoints/2/generator.ema.safetensors").exists()
    assert (tmp_path / config.name / "val/val/2.grid.png").exists()
    rows = [json.loads(line) for line in (tmp_path / config.name / "metrics.jsonl").read_text().splitlines()]
    assert any(math.isfinite(value) for row in rows for key, value in row.items() if key.endswith("fd_pca"))


@pytest.mark.parametrize("path", sorted(p for folder in GENERATIVE for p in (RECIPES / folder).glob("*.yml")), ids=_named)
def test_samples_are_drawn_as_was_trained(path):
    config = load(path)
    (step,) = config.steps.values()
    lesson, sampling = step.injectors["loss"].options, config.eval.injectors["sample"].options
    assert all(lesson[key] == sampling[key] for key in ("process", "prediction", "conditions"))
    before, after = step.injectors["data"].options, config.eval.injectors["gen"].options
    assert (before["shift"], before["scale"]) == (after["shift"], after["scale"])
    assert sampling.get("guidance", 1) == 1 or lesson["drop_rate"] > 0


@pytest.mark.parametrize("folder", GENERATIVE)
def test_the_pictures_of_small_recipes_are_as_wide_as_the_process_takes_them_to_be(folder):
    config = load(RECIPES / folder / "small.yml")
    (step,) = config.steps.values()
    options = step.injectors["data"].options
    pixels = torch.from_numpy(Digits("train").pixels) / 255
    width = create_process(step.injectors["loss"].options["process"]).sigma_data
    assert pixels.mean() == pytest.approx(options["shift"], abs=1e-3)
    assert pixels.std() / options["scale"] == pytest.approx(width, abs=2e-3)
