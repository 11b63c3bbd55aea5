"""`dlas upscale`: every kind of network and of picture, whole files or none, and what fails does not stop the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import toys
from dlas.archs import create_network
from dlas.cli.main import main
from dlas.engine.trainer import Trainer
from dlas.errors import CheckpointError, ConfigurationError, DataError
from dlas.inference.jobs import plan_jobs
from dlas.inference.model import Found, Model, find
from dlas.inference.pictures import Picture, read_picture, write_picture
from dlas.inference.upscale import Upscaler
from runs import configure

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "compact.pth"
    torch.save({"params_ema": compact().state_dict()}, path)
    return path


def compact(**options: Any) -> nn.Module:
    return create_network({"which_model": "SRVGGNetCompact", "num_feat": 8, "num_conv": 2, "scale": 2, **options}).eval()


def pixels(height: int, width: int, channels: int, bits: int = 8) -> np.ndarray:
    generator = np.random.default_rng(height * width * channels)
    return generator.integers(0, 2**bits, (height, width, channels), np.uint16 if bits == 16 else np.uint8).squeeze()


def fill(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(pixels(20, 30, 3)).save(folder / "rgb.png", icc_profile=b"profile of this picture")
    Image.fromarray(pixels(21, 17, 1)).save(folder / "sub/grey.png")
    Image.fromarray(pixels(12, 18, 4)).save(folder / "sub/rgba.webp", lossless=True)
    Image.fromarray(pixels(12, 18, 3)).save(folder / "photo.jpg")
    cv2.imwrite(str(folder / "deep.png"), pixels(16, 24, 3, 16))
    cv2.imwrite(str(folder / "deep_alpha.png"), pixels(16, 24, 4, 16))
    cv2.imwrite(str(folder / "deep_grey.tif"), pixels(16, 24, 1, 16))
    Image.fromarray(pixels(16, 24, 1)).convert("P").save(folder / "palette.gif")


def test_a_folder_keeps_names_folders_and_kinds(checkpoint, tmp_path, capsys):
    fill(tmp_path / "in")
    assert main(["upscale", str(checkpoint), str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--precision", "fp32"]) == 0
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"rgb.png", "sub/grey.png", "sub/rgba.webp", "photo.jpg", "deep.png", "deep_alpha.png", "deep_grey.tif",
                     "palette.png"}  # fmt: skip
    with Image.open(tmp_path / "out/rgb.png") as image:
        assert image.size == (60, 40) and image.info["icc_profile"] == b"profile of this picture"
    assert Image.open(tmp_path / "out/sub/grey.png").mode == "L"
    assert Image.open(tmp_path / "out/sub/rgba.webp").mode == "RGBA"
    assert cv2.imread(str(tmp_path / "out/deep.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    assert cv2.imread(str(tmp_path / "out/deep_alpha.png"), cv2.IMREAD_UNCHANGED).shape == (32, 48, 4)
    assert cv2.imread(str(tmp_path / "out/deep_grey.tif"), cv2.IMREAD_UNCHANGED).shape == (32, 48)
    assert "SRVGGNetCompact x2" in capsys.readouterr().out

    network = compact()
    network.load_state_dict(torch.load(checkpoint)["params_ema"])
    for name in ("rgb.png", "deep.png"):
        given, written = read_picture(tmp_path / "in" / name), read_picture(tmp_path / "out" / name)
        steps = 2**given.bits - 1
        with torch.no_grad():
            expected = network(given.color[None])[0].clamp(0, 1)
        assert (written.color - expected).abs().max() <= 0.5001 / steps


def test_nothing_is_overwritten_unless_told(checkpoint, tmp_path, capsys):
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "a.png")
    command = ["upscale", str(checkpoint), str(tmp_path / "a.png"), "-o", str(tmp_path / "out.png")]
    (tmp_path / "out.png").write_text("mine")
    assert main(command) == 0
    assert (tmp_path / "out.png").read_text() == "mine"
    assert "1 of 1 exist and are passed over" in capsys.readouterr().out
    assert main([*command, "--overwrite"]) == 0
    assert Image.open(tmp_path / "out.png").size == (16, 16)


def test_what_fails_is_named_and_the_rest_is_done(checkpoint, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no picture")
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "in/b.png")
    assert main(["upscale", str(checkpoint), str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png"]
    errors = capsys.readouterr().err
    assert "a.png" in errors and "is not an image" in errors and "1 of 2 failed, 1 were written" in errors


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--outscale", "3"], (36, 24)),
        (["--outscale", "1.5"], (18, 12)),
        (["--ensemble"], (24, 16)),
        (["--tile", "0", "--precision", "bf16"], (24, 16)),
        (["--format", "webp", "--suffix", "_x2"], (24, 16)),
    ],
)
def test_options(checkpoint, tmp_path, options, size):
    Image.fromarray(pixels(8, 12, 4)).save(tmp_path / "a.png")
    assert main(["upscale", str(checkpoint), str(tmp_path / "a.png"), "-o", str(tmp_path / "o"), *options]) == 0
    (written,) = (tmp_path / "o").iterdir()
    assert written.name == ("a_x2.webp" if "--suffix" in options else "a.png")
    with Image.open(written) as image:
        assert image.size == size and image.mode == "RGBA"


def test_tiles_make_the_same_file(checkpoint, tmp_path):
    Image.fromarray(pixels(70, 90, 3)).save(tmp_path / "a.png")
    for tile in ("0", "32"):
        assert main(["upscale", str(checkpoint), str(tmp_path / "a.png"), "-o", str(tmp_path / tile), "--tile", tile]) == 0
    a, b = (np.array(Image.open(tmp_path / tile / "a.png")).astype(int) for tile in ("0", "32"))
    assert np.abs(a - b).max() <= 1 and (a != b).mean() < 0.01


class TestAlpha:
    def model(self) -> Model:
        torch.manual_seed(0)
        return Model(Found({"which_model": "SRVGGNetCompact", "num_feat": 8, "num_conv": 1, "scale": 2},
                           dict(compact(num_conv=1).state_dict()), "w"))  # fmt: skip

    def test_kinds(self):
        picture = Picture(torch.rand(3, 8, 9), torch.rand(1, 8, 9))
        results = {kind: Upscaler(self.model(), CPU, alpha=kind)(picture).alpha for kind in ("network", "bicubic", "drop")}
        assert results["drop"] is None
        assert results["network"].shape == results["bicubic"].shape == (1, 16, 18)
        assert not torch.equal(results["network"], results["bicubic"])

    def test_what_is_opaque_stays_so(self):
        result = Upscaler(self.model(), CPU)(Picture(torch.rand(3, 8, 9), torch.ones(1, 8, 9)))
        assert torch.equal(result.alpha, torch.ones(1, 16, 18))

    def test_where_a_format_has_none_it_is_put_on_white(self, tmp_path):
        write_picture(tmp_path / "a.jpg", Picture(torch.zeros(3, 16, 16), torch.zeros(1, 16, 16)))
        assert np.array(Image.open(tmp_path / "a.jpg")).min() > 250


def test_a_grey_network_takes_colour_and_a_colour_network_grey(tmp_path):
    network = compact(num_in_ch=1, num_out_ch=1)
    model = Model(Found({"which_model": "SRVGGNetCompact", "num_in_ch": 1, "num_out_ch": 1, "num_feat": 8, "num_conv": 2,
                         "scale": 2}, dict(network.state_dict()), "w"))  # fmt: skip
    color = torch.rand(3, 8, 9)
    with torch.no_grad():
        expected = network(color[:, None])[:, 0].clamp(0, 1)
    torch.testing.assert_close(Upscaler(model, CPU)(Picture(color)).color, expected)


def test_low_precision_that_overflows_is_computed_again(tmp_path):
    class Overflows(nn.Module):
        def forward(self, x):
            return x * float("inf") if torch.is_autocast_enabled("cpu") else x * 2

    model = TestAlpha().model()
    model.network = Overflows()
    model.scale = 1.0
    picture = Picture(torch.rand(3, 8, 9) / 2)
    torch.testing.assert_close(Upscaler(model, CPU, precision="bf16")(picture).color, picture.color * 2)


class TestNetworks:
    def test_a_run_and_its_checkpoints(self, tmp_path):
        Trainer(configure(tmp_path, toys.PSNR, "train.niter=2", "checkpointing_enabled=true")).run()
        run = tmp_path / "toy"
        folder = run / "checkpoints/2"
        file = folder / "generator.safetensors"
        found = [find(path) for path in (run, folder, file)]
        assert [each.options["which_model"] for each in found] == [found[0].options["which_model"]] * 3
        outputs = [Model(each)(torch.ones(1, 3, 8, 8)) for each in found]
        torch.testing.assert_close(outputs[1], outputs[0])
        assert all(output.isfinite().all() for output in outputs)
        with pytest.raises(CheckpointError, match="has the networks generator; name one"):
            find(run, "other")

    def test_folded_input_of_any_size(self):
        network = create_network({"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, "scale": 2}).eval()
        model = Model(Found({"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, "scale": 2}, network.state_dict(), "w"))
        assert (model.scale, model.grid) == (2, 2)
        assert model(torch.rand(1, 3, 9, 11)).shape == (1, 3, 18, 22)

    def test_what_is_no_network(self, tmp_path):
        with pytest.raises(CheckpointError, match="neither the folder of a training run"):
            find(tmp_path)
        save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match="belong to no known network"):
            find(tmp_path / "a.safetensors")
        disc = {"which_model": "discriminator_vgg_128", "nf": 4, "in_nc": 3}
        with pytest.raises(CheckpointError, match="makes no pictures of pictures"):
            Model(Found(disc, create_network(disc).state_dict(), "d"))


class TestJobs:
    def test_patterns(self, tmp_path):
        fill(tmp_path / "in")
        jobs = plan_jobs([str(tmp_path / "in/*.png")], tmp_path / "o", None, "")
        assert sorted(job.target.name for job in jobs) == ["deep.png", "deep_alpha.png", "rgb.png"]

    def test_two_that_would_become_one(self, tmp_path):
        for name in ("a.png", "a.jpg"):
            Image.new("RGB", (4, 4)).save(tmp_path / name)
        with pytest.raises(ConfigurationError, match=r"a\.(png|jpg) and .*a\.(jpg|png) would both become .*a\.png"):
            plan_jobs([str(tmp_path)], tmp_path / "o", ".png", "")

    def test_a_file_over_itself(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(ConfigurationError, match="written over itself"):
            plan_jobs([str(tmp_path)], tmp_path, None, "")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            plan_jobs([str(tmp_path / "x*.png")], tmp_path, None, "")


@pytest.mark.skipif(os.name == "nt", reason="no such signal")
def test_interrupted(checkpoint, tmp_path):
    for number in range(3):
        Image.fromarray(pixels(1200, 1200, 3)).save(tmp_path / f"{number}.png")
    command = [sys.executable, "-m", "dlas", "upscale", str(checkpoint), str(tmp_path), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "codes")})  # fmt: skip
    for line in process.stdout:
        if line.startswith("[1/3]"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped: 1 written, all complete; the same command does the other 2" in errors and "Traceback" not in errors
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["0.png"]
