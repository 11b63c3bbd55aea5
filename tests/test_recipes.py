"""Scripts and claims of the recipes. That their files are right and train is in test_project.py and test_reference.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dlas.config import load
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


@pytest.mark.parametrize("name", ["translational_small", "translational_gan_small"])
def test_the_measured_squares_are_those_of_the_recipe(overlap, name):
    step = load(RECIPES / f"esrgan/{name}.yml").steps["generator"]
    loss = step.losses["translational"]
    assert loss.options["patch_size"] == overlap.PATCH * overlap.SCALE
    assert loss.options["overlap"] == overlap.SHARED
    assert step.injectors["corners"].options["patch_size"] == overlap.PATCH


@pytest.mark.parametrize(
    ("first", "second"), [("psnr", "gan"), ("small_psnr", "small_gan"), ("small_psnr", "translational_gan_small")]
)
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


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (176, 208, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("path", FULL, ids=lambda p: str(p.relative_to(RECIPES).as_posix()))
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
