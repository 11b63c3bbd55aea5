"""Scripts and claims of the recipes. That their files are right and train is in test_project.py and test_reference.py."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dlas.config import load
from dlas.data.base import create_dataset
from dlas.diffusion import create_process
from dlas.engine.encoding import encode_data_sets
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


LATENT = RECIPES / "latent_t2i"  # its phases are tested together
TESTED_ELSEWHERE = (LATENT, RECIPES / "stylegan2", RECIPES / "tortoise", RECIPES / "tortoise/small")
FULL = [path for path in sorted(RECIPES.rglob("*.yml")) if "small" not in path.name and path.parent not in TESTED_ELSEWHERE]
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


@pytest.mark.parametrize("path", [p for p in FULL if p.parent.name not in (*GENERATIVE, "byol")], ids=_named)
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
        small |= {"rrdb_srflow": {"nf": 4, "nb": 1, "gc": 4}, "srflow": {"nf": 4, "gc": 4, "K": 1, "pretrain_rrdb": "null"}}
        small |= {"discriminator_vgg_128_gn": {"nf": 8}, "UNetDiscriminatorSN": {"num_feat": 8}}
        settings += [f"networks.{name}.{key}={value}" for key, value in small[network.which_model].items()]
    if "sample" in config.eval.injectors:
        settings += ["eval.injectors.sample.steps=2", "eval.metrics=[psnr_y]", "train.mega_batch_factor=2"]
    if "feature" in config.steps["generator"].losses:
        settings.append("steps.generator.losses.feature.random_weights=true")
    run = Trainer(load(path, settings))
    assert run.run().step == 2
    assert (tmp_path / config.name / "checkpoints/2/generator.ema.safetensors").exists()


# -------------------------------------------------------------------------------------------------- latent diffusion from text


class StandInForClip(nn.Module):
    """What the plug-in needs of CLIP's text encoder, and its tokenizer."""

    from_pretrained = classmethod(lambda cls, folder: cls())

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 16, _weight=torch.linspace(-1, 1, 256 * 16).reshape(256, 16))

    def forward(self, numbers):
        return SimpleNamespace(last_hidden_state=self.table(numbers))


def tokenizer(captions, **options):
    numbers = [
        [ord(each) % 256 for each in caption.ljust(options["max_length"])[: options["max_length"]]] for caption in captions
    ]
    return SimpleNamespace(input_ids=torch.tensor(numbers))


@pytest.fixture
def captioned(photographs, tmp_path, monkeypatch):
    """Settings of a run on photographs with captions, in small, with a stand-in for CLIP."""
    module = ModuleType("transformers")
    module.CLIPTextModel = StandInForClip
    module.CLIPTokenizer = SimpleNamespace(from_pretrained=lambda folder: tokenizer)
    monkeypatch.setitem(sys.modules, "transformers", module)
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(f'{{"file": "{path.name}", "caption": "noise"}}\n' for path in photographs.iterdir()))
    own = {"networks.autoencoder.channels": 8, "networks.autoencoder.norm_groups": "dlas", "precision": "fp32"}
    own |= {"datasets.val.paths": photographs, "datasets.val.target_size": 64, "datasets.train.n_workers": 0}
    own |= {"train.niter": 2, "train.val_freq": 2, "datasets.train.batch_size": 2, "path.experiments": tmp_path}
    return [f"{key}={value}" for key, value in own.items()], photographs, captions


def test_full_phases_of_latent_diffusion_follow_each_other_shrunk(captioned, tmp_path):
    settings, folder, captions = captioned
    source = {"paths": f"[{folder}]", "captions": f"[{captions}]", "target_size": 64}
    settings += [f"datasets.train.source.{key}={value}" for key, value in source.items()]
    settings += ["encode.precision=fp32", f"datasets.val.captions={captions}", "eval.injectors.samples.steps=2"]
    settings += ["train.warmup_iter=1", "eval.injectors.samples.shape=[4, 8, 8]"]
    small = {
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_head_channels": 16,
        "context_channels": 16,
        "norm_groups": "dlas",
    }
    small |= {"attention_resolutions": [1], "num_res_blocks": 1}
    settings += [f"networks.denoiser.{key}={value}" for key, value in small.items()]
    for phase, before in (
        ("256", "{}"),
        ("512", f"{{denoiser: {tmp_path}/latent_t2i_256/checkpoints/2/denoiser.safetensors}}"),
    ):
        own = [*settings, f"datasets.train.folder={tmp_path}/{phase}", f"path.pretrain={before}"]
        config = load(LATENT / f"{phase}.yml", own)
        torch.manual_seed(0)
        encode_data_sets(config)
        # The autoencoder has weights of its own in each: nothing is named for it here.
        weights = tmp_path / f"{phase}.safetensors"
        run = Trainer(config, resume="never")
        save_file({k: v.contiguous() for k, v in run.networks["autoencoder"].state_dict().items()}, weights)
        pretrain = before.rstrip("}") + (", " if len(before) > 2 else "") + f"autoencoder: {weights}}}"
        config = load(LATENT / f"{phase}.yml", [*own, f"path.pretrain={pretrain}"])
        encode_data_sets(config, overwrite=True)
        assert Trainer(config).run().step == 2
        assert len([*(tmp_path / f"latent_t2i_{phase}/val/val").iterdir()]) == 2
    full = [load(LATENT / f"{phase}.yml") for phase in ("256", "512")]
    assert full[1].path.pretrain["denoiser"] == (
        f"experiments/{full[0].name}/checkpoints/{full[0].train.niter}/denoiser.safetensors"
    )
    assert full[0].networks["denoiser"].options == full[1].networks["denoiser"].options


def test_the_full_autoencoder_trains_shrunk(captioned):
    settings, folder, _ = captioned
    settings += [f"datasets.train.paths=[{folder}]", "datasets.train.target_size=64", "networks.discriminator.ndf=8"]
    settings += ["steps.autoencoder.losses.lpips.random_weights=true", "steps.autoencoder.losses.gan.after=1"]
    settings += ["steps.discriminator.after=1", "eval.metrics=[psnr]"]
    assert Trainer(load(LATENT / "autoencoder.yml", settings)).run().step == 2


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
    assert all(lesson.get(key) == sampling.get(key) for key in ("process", "prediction", "conditions"))
    before, after = step.injectors["data"].options, config.eval.injectors["gen"].options
    assert (before["shift"], before["scale"]) == (after["shift"], after["scale"])
    assert sampling.get("guidance", 1) == 1 or lesson["drop_rate"] > 0


@pytest.mark.parametrize("name", ["edm/small", "edm/photographs_small", "flow/small"])
def test_the_pictures_of_small_recipes_are_as_wide_as_the_process_takes_them_to_be(name):
    config = load(RECIPES / f"{name}.yml")
    (step,) = config.steps.values()
    options = step.injectors["data"].options
    section = config.datasets["train"]
    pixels = torch.from_numpy(create_dataset({**section.options, "mode": section.mode}, phase="train", name="x").pixels) / 255
    width = create_process(step.injectors["loss"].options["process"]).sigma_data
    assert pixels.mean() == pytest.approx(options["shift"], abs=1e-3)
    assert pixels.std() / options["scale"] == pytest.approx(width, abs=2e-3)


UPSTREAM = Path(__file__).parent / "upstream-recipes/diffusion/train_ddpm_unet.yml"


def smooth(folder: Path, side: int) -> Path:
    """Two smooth pictures."""
    folder.mkdir()
    for number in range(2):
        small = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def test_the_diffusion_recipe_is_dl_art_schools(tmp_path):
    """The file in DL-Art-School's language and ours: the same weights after two steps."""
    folder = smooth(tmp_path / "pictures", 32)
    network = {"image_size": 32, "model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2]}
    common = ["train.niter=2", "train.mega_batch_factor=1", "logger.tensorboard=false", "eval.metrics=[psnr]", "seed=1"]
    common += [f"datasets.train.{key}={value}" for key, value in (("batch_size", 2), ("n_workers", 0), ("target_size", 32))]
    common += [f"datasets.train.paths={folder}"]
    runs = {}
    sampled = [f"datasets.val.paths={folder}", "datasets.val.target_size=32", "eval.injectors.sample.steps=4"]
    for path, args, own in ((UPSTREAM, ".args", []), (RECIPES / "diffusion/full.yml", "", sampled)):
        settings = [f"networks.generator{args}.{key}={value}" for key, value in network.items()]
        runs[path] = run = Trainer(load(path, [*common, *settings, *own, f"path.experiments={tmp_path}"]))
        assert run.run().step == 2
    theirs, ours = runs.values()
    for (name, one), (_, other) in zip(
        theirs.networks["generator"].named_parameters(), ours.networks["generator"].named_parameters(), strict=True
    ):
        if one.dim() > 1:  # biases before a normalisation have no gradient but rounding, of which Adam makes much
            assert (one - other).abs().max() < 3e-5, name  # a tenth of a step


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
