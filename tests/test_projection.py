"""`dlas latent project`: a picture that a generator made is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlas.archs import create_network
from dlas.archs.stylegan2_generator import StyleGAN2Generator
from dlas.cli.main import main
from dlas.errors import CheckpointError
from dlas.inference.model import OPTIONS_KEY
from dlas.inference.pictures import Picture, read_picture, write_picture
from dlas.inference.projection import load_generator, project, read_target
from dlas.registry import ARCHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released generator, and a picture that it made."""
    made = tmp_path_factory.mktemp("projection")
    torch.manual_seed(0)
    options, _ = StyleGAN2Generator.tiny()
    generator = StyleGAN2Generator(**options).eval()
    described = json.dumps({"which_model": "stylegan2_rosinality_gen", **options})
    save_file(generator.state_dict(), made / "gen.safetensors", metadata={OPTIONS_KEY: described})
    with torch.no_grad():
        picture = (generator(torch.randn(1, 8))[0][0] + 1) / 2
    write_picture(made / "made.png", Picture(picture.clamp(0, 1)))
    write_picture(made / "wide.png", Picture(torch.rand(3, 40, 60)))
    return made


def call(folder: Path, picture: str, output: str, *more: str) -> int:
    return main(
        ["latent", "project", str(folder / "gen.safetensors"), str(folder / picture), "-o", str(folder / output), *more]
    )


def error(one: Tensor, two: Tensor) -> float:
    return (one - two).square().mean().item()


def test_a_picture_of_the_generator_is_found_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(folder, "made.png", "found.png", "--steps", "100") == 0
    assert "found.png" in capsys.readouterr().out
    generator = load_generator(folder / "gen.safetensors")
    target = read_target(folder / "made.png", 16)
    start = (generator(generator.mean_latent(10_000), input_is_latent=True)[0] + 1) / 2
    found = read_picture(folder / "found.png").color[None]
    assert error(found, target) < error(start, target) / 2
    latent = load_file(folder / "found.safetensors")["latent"]
    assert latent.shape == (1, 8)
    made = (generator(latent, input_is_latent=True)[0] + 1) / 2
    torch.testing.assert_close(made.clamp(0, 1), found, rtol=0, atol=1 / 255)


def test_the_seed_decides(folder: Path) -> None:
    generator = load_generator(folder / "gen.safetensors")
    target = read_target(folder / "made.png", 16)
    one, again, other = (project(generator, target, steps=5, seed=seed)[0] for seed in (0, 0, 1))
    assert one.equal(again) and not one.equal(other)
    mean, _ = project(generator, target, steps=0)
    torch.testing.assert_close(mean, generator.mean_latent(10_000), rtol=0, atol=0.05)


def test_a_perceptual_distance_has_its_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_lpips(*given: Any) -> Any:
        asked.extend(given[:3])
        return lambda made, target: 100 * made.square().mean((1, 2, 3))  # wants it black

    monkeypatch.setattr("dlas.layers.lpips.load_lpips", load_lpips)
    for name, more in (("plain.png", ()), ("black.png", ("--lpips", "vgg16.pth", "heads.pth"))):
        assert call(folder, "made.png", name, "--steps", "30", *more) == 0
    assert asked == ["vgg", "vgg16.pth", "heads.pth"]
    plain, black = (read_picture(folder / name).color.mean() for name in ("plain.png", "black.png"))
    assert black < plain - 0.05


def test_the_middle_of_a_picture_is_taken(folder: Path) -> None:
    whole = read_picture(folder / "wide.png").color
    assert read_target(folder / "wide.png", 40)[0].equal(whole[:, :, 10:50])
    assert read_target(folder / "wide.png", 16).shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("picture", "output", "more", "message"),
    [
        ("made.png", "x.safetensors", (), "what project writes must end with"),
        ("none.png", "x.png", (), "none.png"),
        ("made.png", "x.png", ("--lpips", "none.pth", "none.pth"), "none.pth"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, picture: str, output: str, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(folder, picture, output, *more) == 1
    assert message in capsys.readouterr().err
    assert not (folder / output).exists()


def test_another_network_is_refused(tmp_path: Path) -> None:
    options, _ = ARCHS.get("EDSR").tiny()
    described = json.dumps({"which_model": "EDSR", **options})
    network = create_network({"which_model": "EDSR", **options})
    save_file(network.state_dict(), tmp_path / "edsr.safetensors", metadata={OPTIONS_KEY: described})
    with pytest.raises(CheckpointError, match=r"edsr\.safetensors: a stylegan2_rosinality_gen is needed, and this is EDSR"):
        load_generator(tmp_path / "edsr.safetensors")
