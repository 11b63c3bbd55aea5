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
    for phase in ("train", "val"):
        folder = "paths" if config.datasets[phase].mode == "imagefolder" else "dataroot_gt"
        settings.append(f"datasets.{phase}.{folder}={photographs}")
        settings += [f"datasets.{phase}.target_size=32"] if folder == "paths" else []
    if config.datasets["train"].mode == "degraded_images":
        settings += [f"datasets.train.{key}={size}" for key, size in (("target_size", 56), ("degradation_size", 112))]
    for name, network in config.networks.items():
        small = {"RRDBNet": {"nf": 8, "nb": 1, "gc": 4}, "SwinIR": {"embed_dim": 6, "depths": "[1]", "num_heads": "[1]"}}
        unet = {"model_channels": 8, "num_res_blocks": 1, "channel_mult": "[1, 2]"}
        small |= {"guided_superres": {**unet, "norm_groups": "dlas"}, "unet_diffusion": {**unet, "image_size": 32}}
        small |= {"discriminator_vgg_128_gn": {"nf": 8}, "UNetDiscriminatorSN": {"num_feat": 8}}
        settings += [f"networks.{name}.{key}={value}" for key, value in small[network.which_model].items()]
    if "sample" in config.eval.injectors:
        settings += ["eval.injectors.sample.steps=2", "eval.metrics=[psnr_y]", "train.mega_batch_factor=2"]
    if "feature" in config.steps["generator"].losses:
        settings.append("steps.generator.losses.feature.random_weights=true")
    run = Trainer(load(path, settings))
    assert run.run().step == 2
    assert (tmp_path / config.name / "checkpoints/2/generator.ema.safetensors").exists()


UPSTREAM = Path(__file__).parent / "upstream-recipes/diffusion/train_ddpm_unet.yml"


def smooth(folder: Path, side: int) -> Path:
    """Two smooth pictures."""
    folder.mkdir()
    for number in range(2):
        small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_the_diffusion_recipe_is_dl_art_schools(tmp_path):
    """The file in DL-Art-School's language and ours: the same weights after two steps, and the same samples."""
    folder = smooth(tmp_path / "pictures", 32)
    network = {"image_size": 32, "model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2]}
    common = ["train.niter=2", "train.mega_batch_factor=1", "logger.tensorboard=false", "eval.metrics=[psnr]", "seed=1"]
    common += [f"datasets.train.{key}={value}" for key, value in (("batch_size", 2), ("n_workers", 0), ("target_size", 32))]
    common += [f"datasets.train.paths={folder}"]
    runs = {}
    for path, args, data, sampling, steps in (
        (UPSTREAM, ".args", "eval.evaluators.fid.dataset", "eval.evaluators.fid.diffusion_params", "respaced_timestep_spacing"),
        (RECIPES / "diffusion/full.yml", "", "datasets.val", "eval.injectors.sample", "steps"),
    ):
        settings = [f"networks.generator{args}.{key}={value}" for key, value in network.items()]
        settings += [f"{data}.paths={folder}", f"{data}.target_size=32", f"{sampling}.{steps}=4"]
        settings += [f"path.experiments={tmp_path}"]
        run = Trainer(load(path, [*common, *settings]))
        assert run.run().step == 2
        runs[path] = run, [np.asarray(Image.open(file)) for file in sorted((tmp_path / run.config.name).glob("val/*/*/2.png"))]
    (theirs, pictures), (ours, same) = runs.values()
    for (name, one), (_, other) in zip(
        theirs.networks["generator"].named_parameters(), ours.networks["generator"].named_parameters(), strict=True
    ):
        if one.dim() > 1:  # biases before a normalisation have no gradient but rounding, of which Adam makes much
            assert (one - other).abs().max() < 3e-5, name  # a tenth of a step
    assert len(pictures) == len(same) == 2
    assert all(np.abs(one.astype(int) - other).max() <= 1 for one, other in zip(pictures, same, strict=True))


@pytest.fixture
def shrunk(photographs, tmp_path):
    """Settings of diffusion_sr/small.yml for two steps of a tiny network."""
    data = f"datasets.val={{mode: paired_images, dataroot_gt: {photographs}}}"
    settings = [
        "train.niter=2",
        "train.val_freq=2",
        "precision=fp32",
        "logger.tensorboard=false",
        "eval.metrics=[psnr_y]",
        data,
    ]
    settings += ["datasets.train.batch_size=4", "datasets.train.target_size=16", "networks.generator.model_channels=8"]
    return [*settings, f"path.experiments={tmp_path}", "train.lr_scheme={type: constant}"]


def trained(*settings: str) -> list[torch.Tensor]:
    run = Trainer(load(RECIPES / "diffusion_sr/small.yml", settings))
    run.run()
    return [p.detach().clone() for p in run.networks["generator"].parameters()]


def test_diffusion_in_micro_batches_is_the_same(shrunk, tmp_path):
    whole = trained(*shrunk, "name=whole")
    halves = trained(*shrunk, "name=halves", "train.mega_batch_factor=2")
    for one, other in zip(whole, halves, strict=True):
        if one.dim() > 1:  # biases before a normalisation have no gradient but rounding
            assert (one - other).abs().max() < 1e-4  # a tenth of a step of 1e-3
    assert Image.open(tmp_path / "whole/val/val/2.way.png").width == 3 * 208  # three stages of the whole picture


def test_diffusion_goes_on_where_it_stopped(shrunk):
    through = trained(*shrunk, "name=through")
    trained(*shrunk, "name=stopped", "train.niter=1")
    assert all(map(torch.equal, through, trained(*shrunk, "name=stopped")))
