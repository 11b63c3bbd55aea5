"""The recipes of DL-Art-School, unedited: they run, or one thing is missing, which is the network they name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dlas.config import check, load
from dlas.config.source import read_yaml
from dlas.engine.testing import run_test
from dlas.engine.trainer import Trainer
from dlas.errors import CheckpointError
from dlas.layers.classifiers import build_classifier
from runs import batches, rows

ROOT = Path(__file__).resolve().parent.parent
RECIPES = Path(__file__).resolve().parent / "upstream-recipes"
ALL = sorted(RECIPES.rglob("*.yml"))

# What stops a recipe: the network that belongs to later work. The others run.
NEEDS = {
    "train_tacotron2_lj": "nv_tacotron2",
    "test_tacotron2_lj": "nv_tacotron2",
}
SMALL = ["networks.generator.nf=8", "networks.generator.nb=1", "networks.generator.gc=4"]


def recipe(name: str) -> Path:
    return next(path for path in ALL if path.stem == name)


def photographs(folder: Path, count: int, height: int, width: int) -> list[np.ndarray]:
    """Smooth random pictures, written as PNG."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(7)
    pictures = [cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width, height)) for _ in range(count)]
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return pictures


@pytest.fixture
def chunks(tmp_path) -> Path:
    """Two images cut into tiles, in DL-Art-School's layout."""
    root = tmp_path / "chunks"
    for image in ("one", "two"):
        tiles = photographs(tmp_path / f"source-{image}", 3, 128, 128)
        (root / image).mkdir(parents=True)
        for number, tile in enumerate(tiles):
            cv2.imwrite(str(root / image / f"{number:08d}.jpg"), tile)
        cv2.imwrite(str(root / image / "ref.jpg"), tiles[0])
        torch.save({0: ((0, 0), 128), 1: ((0, 1), 128), 2: ((0, 2), 128)}, root / image / "centers.pt")
    return root


@pytest.fixture
def data(tmp_path, chunks) -> list[str]:
    """Overrides that point a recipe at synthetic data, and its output at the test's folder."""
    photographs(tmp_path / "val", 2, 70, 83)
    return [
        f"datasets.train.paths={chunks}", f"datasets.val.dataroot_GT={tmp_path / 'val'}", "datasets.train.batch_size=2",
        "datasets.train.n_workers=0", f"path.experiments={tmp_path}", "train.niter=2", "logger.print_freq=1",
        "logger.tensorboard=false",
    ]  # fmt: skip


@pytest.fixture
def vgg(tmp_path) -> str:
    """A file of untrained weights in place of VGG19's."""
    torch.manual_seed(0)
    torch.save(build_classifier("vgg19", ["conv5_4"]).state_dict(), tmp_path / "vgg.pth")
    return f"steps.generator.losses.feature.load_path={tmp_path / 'vgg.pth'}"


def test_all_recipes_are_here():
    assert len(ALL) == 13
    assert NEEDS.keys() <= {path.stem for path in ALL}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_right_or_names_one_network_that_is_not_built(path):
    errors = [problem for problem in check(path) if problem.severity == "error"]
    missing = NEEDS.get(path.stem)
    if missing is None:
        assert errors == []
        return
    assert len(errors) == 1, [str(each) for each in errors]
    assert errors[0].message.startswith(f"no network is called '{missing}' yet")
    tree, _ = read_yaml(path)
    named = next(s for s in tree["networks"].values() if missing in s.values())
    assert errors[0].mark.line == named.mark.line


@pytest.mark.parametrize("name", ["train_tacotron2_lj", "test_tacotron2_lj"])
def test_what_comes_with_a_missing_network_is_said_not_to_be_checked(name):
    warnings = [str(problem) for problem in check(recipe(name)) if problem.severity == "warning"]
    warnings = [each for each in warnings if "there is no data set to validate on" not in each]
    assert warnings
    assert all("is not checked: it comes with the network" in each for each in warnings)


def test_what_is_planned_is_an_error_where_no_network_is_missing(tmp_path):
    text = (
        recipe("train_div2k_esrgan")
        .read_text()
        .replace("eval:\n", "eval:\n  evaluators: {fid: {type: sr_fid, for: generator}}\n")
    )
    path = tmp_path / "file.yml"
    path.write_text(
        text.replace("type: translational", "type: nv_tacotron2_loss").replace(
            "logger:\n", "logger:\n  is_mel_spectrogram: true\n"
        )
    )
    errors = [problem.message for problem in check(path) if problem.severity == "error"]
    assert len(errors) == 3
    assert any("no evaluator is called 'sr_fid' yet" in each for each in errors)
    assert any("no loss is called 'nv_tacotron2_loss' yet" in each for each in errors)


def test_a_misspelt_name_beside_a_missing_network_is_an_error_of_its_own(tmp_path):
    path = tmp_path / "file.yml"
    path.write_text(recipe("train_tacotron2_lj").read_text().replace("        type: generator", "        type: genrator"))
    errors = [problem.message for problem in check(path) if problem.severity == "error"]
    assert len(errors) == 2
    assert "no injector is called 'genrator'" in errors[1]


def test_the_vqvae_recipe_trains_and_validates(tmp_path):
    photographs(tmp_path / "train", 4, 256, 256)
    photographs(tmp_path / "val", 2, 64, 80)
    small = ["channel=8", "n_res_channel=4", "codebook_dim=4", "codebook_size=16"]
    run = Trainer(load(recipe("train_imgnet_vqvae_stage1"), [
        *(f"networks.generator.kwargs.{each}" for each in small),
        f"datasets.train.paths={tmp_path / 'train'}", f"datasets.val.dataroot_GT={tmp_path / 'val'}",
        "datasets.train.batch_size=2", "datasets.train.n_workers=0", f"path.experiments={tmp_path}", "train.niter=2",
        "train.val_freq=2", "logger.print_freq=1", "logger.tensorboard=false",
    ]))  # fmt: skip
    codes = run.networks["generator"].quantize_b.embed.clone()
    assert run.run().step == 2
    assert not run.networks["generator"].quantize_b.embed.equal(codes)
    logged = rows(tmp_path / "train_imgnet_vqvae_stage1", "train")[-1]
    assert {key for key in logged if "commitment_loss" in key}, logged
    assert rows(tmp_path / "train_imgnet_vqvae_stage1", "val")


def test_the_psnr_recipe_trains_and_validates(data, tmp_path):
    run = Trainer(load(recipe("train_div2k_rrdb_psnr"), [*SMALL, *data]))
    first = [p.detach().clone() for p in run.networks["generator"].parameters()]
    assert run.run().step == 2
    assert any(not p.equal(q) for p, q in zip(run.networks["generator"].parameters(), first, strict=True))
    row = rows(tmp_path / "train_div2k_rrdb_psnr", "val")[-1]
    assert row["psnr_y"] > 0
    assert row["bicubic_psnr_y"] > 0  # the enlargement by the scale of the data, which the top of the file gets wrong


@pytest.mark.parametrize("name", ["train_div2k_esrgan", "train_div2k_esrgan_reference"])
def test_the_gan_recipes_train(name, data, tmp_path):
    """Two steps before the losses with gates come on: the weights of VGG19 are not needed."""
    run = Trainer(load(recipe(name), [*SMALL, "networks.feature_discriminator.nf=8", *data]))
    assert run.run().step == 2
    row = rows(tmp_path / name, "train")[-1]
    assert "generator/pix" in row
    assert "generator/feature" not in row


@pytest.mark.parametrize("name", ["train_div2k_esrgan", "train_div2k_esrgan_reference"])
def test_the_gan_recipes_train_with_all_gates_open(name, data, vgg, tmp_path):
    path = recipe(name)
    tree, _ = read_yaml(path)
    gates = [f"steps.{s}.after=0" for s in tree["steps"]] + [
        f"steps.{s}.losses.{loss}.after=0" for s, step in tree["steps"].items() for loss in step["losses"]
    ]
    run = Trainer(load(path, [*SMALL, "networks.feature_discriminator.nf=8", *data, *gates, vgg]))
    before = {n: [p.detach().clone() for p in net.parameters()] for n, net in run.networks.items()}
    for batch in batches(run, 2):
        run.iterate(batch)
    values = run.meter.read()
    for step, section in tree["steps"].items():
        for loss in section["losses"]:
            assert values[f"{step}/{loss}"] != 0
    for network_name, network in run.networks.items():
        assert any(not p.equal(q) for p, q in zip(network.parameters(), before[network_name], strict=True)), network_name


def test_a_run_that_needs_weights_that_are_not_there_does_not_begin(data, tmp_path):
    missing = f"steps.generator.losses.feature.load_path={tmp_path}/none.pth"
    config = load(recipe("train_div2k_esrgan"), [*SMALL, *data, missing, "train.niter=80001"])
    with pytest.raises(CheckpointError, match=r"needs torchvision's VGG19 .*none\.pth .*fetch vgg19"):
        Trainer(config)
    Trainer(load(recipe("train_div2k_esrgan"), [*SMALL, *data, missing, "train.niter=80000"]))


SMALL_UNET = [
    f"networks.generator.args.{option}"
    for option in (
        "image_size=32", "model_channels=8", "num_res_blocks=1", "channel_mult=[1,2]", "attention_resolutions=[2]",
        "num_heads=1",
    )
]  # fmt: skip


def test_the_diffusion_recipe_trains_and_what_it_trained_is_sampled(tmp_path):
    photographs(tmp_path / "photos", 3, 64, 64)
    where = [f"datasets.train.paths={tmp_path / 'photos'}", f"path.experiments={tmp_path}", "logger.tensorboard=false"]
    small = [
        "datasets.train.target_size=32", "datasets.train.n_workers=0", "datasets.train.batch_size=4", "train.niter=2",
        "train.mega_batch_factor=2", "logger.print_freq=1", "logger.visual_debug_rate=1",
    ]  # fmt: skip
    run = Trainer(load(recipe("train_ddpm_unet"), [*SMALL_UNET, *where, *small]))
    assert run.run().step == 2
    folder = tmp_path / "train_unet_diffusion"
    for row in rows(folder, "train"):
        assert row["generator/diffusion_loss"] > 0
        assert row["generator/var_loss"] > 0
        assert {"generator/upper_quantile_mse_loss", "generator/mid_upper_quantile_mse_loss"} & row.keys()
    assert cv2.imread(str(folder / "visuals/x_start_pred/2.png")) is not None
    few = [
        "steps.generator.injectors.visual_debug.respaced_timestep_spacing=3",
        f"path.pretrain_model_generator={folder}/checkpoints/2/generator.ema.safetensors",
    ]
    results = run_test(load(recipe("test_diffusion_unet"), [*SMALL_UNET, *where, *few], mode="test"))
    assert len(results["my_inference_images"].pictures) == 3
    pictures = sorted((tmp_path / "test_diffusion_unet" / "my_inference_images").glob("*.png"))
    assert [cv2.imread(str(path)).shape for path in pictures] == [(128, 128, 3)] * 3  # twice the size of the input


def test_the_video_recipe_writes_a_picture_for_each_frame(data, tmp_path):
    trained = Trainer(load(recipe("train_div2k_rrdb_psnr"), [*SMALL, *data]))
    torch.save(trained.networks["generator"].state_dict(), tmp_path / "generator.pth")
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (24, 16))
    for number in range(8):
        writer.write(np.full((16, 24, 3), 20 * number, np.uint8))
    writer.release()
    overrides = [
        f"dataset.video_file={tmp_path}/v.avi", "dataset.frame_rate=5",
        f"path.pretrain_model_generator={tmp_path}/generator.pth", f"path.experiments={tmp_path}",
    ]  # fmt: skip
    results = run_test(load(recipe("rrdb_process_video"), [*SMALL, *overrides], mode="test"))
    pictures = sorted((tmp_path / "video_process" / "myvideo").glob("*.png"))
    assert [path.name for path in pictures] == ["000000.png", "000001.png", "000002.png", "000003.png"]
    assert cv2.imread(str(pictures[0])).shape == (64, 96, 3)
    assert results["myvideo"].means == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_div2k_esrgan", "steps.feature_discriminator.lr: read as part of 'optimizer_params' (DL-Art-School ignored"),
        ("test_tacotron2_lj", "the section 'train' is missing, and is not needed to test; DL-Art-School looked"),
        ("test_diffusion_unet", "datasets.train: read as 'datasets.test': DL-Art-School tested on every data set"),
        ("test_diffusion_unet", "eval: read with 'metrics: []': the pictures are the input (skip_lq)"),
        ("train_div2k_srflow", "eval.evaluators.gaussian: read as a data set to validate on, with 'gaussian_diff' as one of"),
        ("train_ddpm_unet", "eval.evaluators.fid: has no effect: what is sampled is measured by 'eval.metrics: [fid]'"),
        ("train_div2k_rrdb_psnr", "scale: 2 is read as 4, which is the scale of every data set and network; DL-Art"),
        ("train_div2k_esrgan", "networks.feature_discriminator.scale: has no effect: the architecture"),
        ("rrdb_process_video", "dataset: read as 'datasets.video' of mode 'video_frames'"),
    ],
)  # fmt: skip
def test_known_faults_are_repaired_and_said(name, expected):
    notices = [str(problem) for problem in check(recipe(name)) if problem.severity == "notice"]
    assert any(expected in each for each in notices), notices


def dlas(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dlas", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "codes")}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_check_lists_every_translation(tmp_path):
    path = recipe("train_div2k_srflow")
    done = dlas("check", "--as-upstream", "-opt", str(path))
    assert done.returncode == 0
    notices = [problem for problem in check(path) if problem.severity == "notice"]
    assert f"translations: {len(notices)}\n" in done.stdout
    assert all(f"  {problem}\n" in done.stdout for problem in notices)
    own = dlas("check", "--as-upstream", "-opt", str(ROOT / "options/train_x.yml"))
    assert own.returncode == 0
    assert "translations: none" in own.stdout


def test_the_copies_are_the_published_files():
    """Unedited: their size in bytes, all together."""
    assert sum(path.stat().st_size for path in ALL) == 34848
    assert json.dumps(sorted(path.name for path in ALL)).count(".yml") == 13
