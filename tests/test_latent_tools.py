"""`dlas latent`: from picture files to picture files through a flow's latents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dlas.archs.srflow import SRFlow
from dlas.cli.main import main
from dlas.inference.latents import GAP, interpolated, load_flow, read_pair, sheet, swept
from dlas.inference.model import OPTIONS_KEY
from dlas.inference.pictures import Picture, read_picture, write_picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released flow and pictures."""
    made = tmp_path_factory.mktemp("latents")
    torch.manual_seed(0)
    options, _ = SRFlow.tiny()
    flow = SRFlow(**options)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    described = json.dumps({"which_model": "srflow", **options})
    save_file(flow.state_dict(), made / "flow.safetensors", metadata={OPTIONS_KEY: described})
    for name, height, width in (("a", 17, 26), ("b", 16, 24), ("low", 4, 6), ("other", 24, 24)):
        write_picture(made / f"{name}.png", Picture(torch.rand(3, height, width)))
    return made


def call(folder: Path, command: str, *words: str) -> int:
    """Names of the folder's files become paths."""
    paths = [str(folder / word) if word.endswith((".png", ".safetensors")) else word for word in words]
    return main(["latent", command, str(folder / "flow.safetensors"), *paths])


def pixels(folder: Path, name: str) -> Tensor:
    return read_picture(folder / name).color


def test_a_picture_comes_back_from_its_latents(folder, capsys):
    assert call(folder, "encode", "a.png", "-o", "z.safetensors") == 0
    assert "bits a dimension" in capsys.readouterr().out
    assert call(folder, "decode", "z.safetensors", "-o", "back.png") == 0
    assert pixels(folder, "back.png").equal(pixels(folder, "a.png")[:, :16, :24])


def test_restoring_keeps_all_or_nothing_of_the_latents(folder):
    call(folder, "restore", "b.png", "--share", "1", "-o", "same.png")
    assert pixels(folder, "same.png").equal(pixels(folder, "b.png"))
    call(folder, "restore", "b.png", "--share", "0", "-o", "likely.png")
    flow = load_flow(folder / "flow.safetensors")
    _, low_res = read_pair(flow, folder / "b.png")
    torch.testing.assert_close(pixels(folder, "likely.png"), flow.sample(low_res, 0.0)[0].clamp(0, 1), rtol=0, atol=1 / 255)


def test_transfer_takes_latents_of_one_and_content_of_the_other(folder):
    call(folder, "transfer", "a.png", "low.png", "-o", "moved.png")
    flow = load_flow(folder / "flow.safetensors")
    latents, *_ = flow.encode(*read_pair(flow, folder / "a.png"))
    expected = flow.decode(latents, pixels(folder, "low.png")[None])[0]
    torch.testing.assert_close(pixels(folder, "moved.png"), expected.clamp(0, 1), rtol=0, atol=1 / 255)


def test_interpolation_begins_and_ends_with_the_pictures(folder):
    call(folder, "interpolate", "a.png", "b.png", "--count", "3", "-o", "row.png")
    row = pixels(folder, "row.png")
    assert row.shape == (3, 16, 3 * 24 + 2 * GAP)
    assert row[:, :, :24].equal(pixels(folder, "a.png")[:, :16, :24]) and row[:, :, -24:].equal(pixels(folder, "b.png"))
    flow = load_flow(folder / "flow.safetensors")
    a, b = (read_pair(flow, folder / name) for name in ("a.png", "b.png"))
    middle = flow.encode(interpolated(flow, a, b, [0.5]), (a[1] + b[1]) / 2)[0][-1]
    ends = [flow.encode(*pair)[0][-1] for pair in (a, b)]
    torch.testing.assert_close(middle.norm(), (ends[0].norm() + ends[1].norm()) / 2)


def test_a_sweep_shows_the_same_samples_at_every_heat(folder):
    call(folder, "sweep", "low.png", "--heats", "0", "0.5", "--samples", "2", "-o", "sheet.png")
    made = pixels(folder, "sheet.png")
    assert made.shape == (3, 2 * 16 + GAP, 2 * 24 + GAP)
    assert made[:, :16, :24].equal(made[:, -16:, :24]) and not made[:, :16, -24:].equal(made[:, -16:, -24:])
    flow = load_flow(folder / "flow.safetensors")
    low_res = pixels(folder, "low.png")[None]
    pictures = swept(flow, low_res, [0.5, 1.0], 2)
    half, whole = (flow.encode(pictures[place : place + 1], low_res)[0][-1] for place in (2, 3))
    torch.testing.assert_close(2 * half, whole, rtol=1e-3, atol=1e-4)


def test_a_sheet_has_its_pictures_in_rows():
    made = sheet(torch.stack([torch.full((3, 2, 3), value) for value in (0.1, 0.2, 0.3)]), 2)
    assert made.shape == (3, 4 + GAP, 6 + GAP)
    assert made[0, 0, 0] == 0.1 and made[0, 0, -1] == 0.2 and made[0, -1, 0] == 0.3 and made[0, -1, -1] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("encode", "a.png", "-o", "z.png"), "must end with .safetensors"),
        (("encode", "other.png", "--low", "low.png", "-o", "z.safetensors"), "at scale 4 it must have 6x6"),
        (("decode", "flow.safetensors", "-o", "x.png"), "holds no latents; `dlas latent encode` writes such files"),
        (("decode", "a.png", "-o", "x.png"), "cannot be read as a file of `dlas latent encode`"),
        (("transfer", "other.png", "low.png", "-o", "x.png"), "same size: 6x6 and 6x4 pixels in low resolution"),
        (("interpolate", "other.png", "b.png", "-o", "x.png"), "same size: 24x24 and 24x16"),
        (("sweep", "none.png", "-o", "x.png"), "none.png"),
    ],
)
def test_what_is_wrong_is_said(folder, words, message, capsys):
    assert call(folder, *words) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "x.png").exists()
