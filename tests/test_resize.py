"""Bicubic resizing: what a resize must leave alone, its borders, its arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.layers.resize import imresize

SCALES = [1 / 4, 1 / 3, 1 / 2, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0]


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("antialias", [True, False])
def test_constant_stays_constant(scale: float, antialias: bool) -> None:
    image = torch.full((3, 17, 23), 0.3, dtype=torch.float64)
    resized = imresize(image, scale, antialias=antialias)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.3), rtol=0, atol=1e-14)


# A stretched cubic with normalised weights keeps a line only where the taps lie symmetrically about the centre: 0.7 does not.
@pytest.mark.parametrize(
    ("scale", "antialias"),
    [(scale, antialias) for scale in SCALES for antialias in (True, False) if scale != 0.7 or not antialias],
)
@pytest.mark.parametrize("axis", [-1, -2])
def test_ramp_stays_a_ramp_inside(scale: float, antialias: bool, axis: int) -> None:
    length = 48
    image = torch.arange(length, dtype=torch.float64).expand(1, 9, length)
    image = image if axis == -1 else image.transpose(-1, -2)
    resized = imresize(image, scale, antialias=antialias).movedim(axis, -1)[0, 0]
    # The centre of output pixel i lies at (i + 1/2) / scale - 1/2 of the input.
    expected = (torch.arange(len(resized), dtype=torch.float64) + 0.5) / scale - 0.5
    reach = 2 / min(scale, 1) + 1
    inside = (expected > reach) & (expected < length - 1 - reach)
    assert inside.sum() > 2
    torch.testing.assert_close(resized[inside], expected[inside], rtol=0, atol=1e-12)


def test_scale_one_changes_nothing() -> None:
    image = _random(2, 3, 13, 11)
    torch.testing.assert_close(imresize(image, 1.0), image, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("length", "scale", "expected"), [(25, 1 / 2, 13), (37, 1 / 3, 13), (25, 0.7, 18), (24, 1 / 3, 8)])
def test_output_length_is_rounded_up(length: int, scale: float, expected: int) -> None:
    assert imresize(_random(1, length, length), scale).shape == (1, expected, expected)


@pytest.mark.parametrize("scale", [1 / 2, 2.0, 4.0])
def test_agrees_with_the_antialiased_resize_of_torch_away_from_the_border(scale: float) -> None:
    image = _random(1, 3, 64, 48)
    expected = F.interpolate(image, scale_factor=scale, mode="bicubic", antialias=True)
    border = 16
    inner = (..., slice(border, -border), slice(border, -border)) if scale > 1 else (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(imresize(image, scale)[inner], expected[inner], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 2.0, 3.0])
def test_border_is_the_mirror_image(scale: float) -> None:
    image = _random(1, 16, 24)
    wide = torch.cat([image.flip(-1), image, image.flip(-1)], -1)
    wide = torch.cat([wide.flip(-2), wide, wide.flip(-2)], -2)
    resized = imresize(image, scale)
    rows, columns = resized.shape[-2:]
    middle = imresize(wide, scale)[..., rows : 2 * rows, columns : 2 * columns]
    torch.testing.assert_close(resized, middle, rtol=0, atol=1e-13)


def test_kernel_may_be_wider_than_the_image() -> None:
    image = _random(1, 3, 2)
    wide = image
    for axis in (-1, -2):
        period = torch.cat([wide, wide.flip(axis)], axis)
        wide = torch.cat([period] * 9, axis)  # starts a period of the mirrored image, four of them before the middle
    start = (4 * 2 * 3, 4 * 2 * 2)
    shrunk = imresize(wide, 1 / 4)
    # Output pixel 0 of the small image is centred at 1.5; 24 and 16 are multiples of 4, so the grids coincide.
    expected = shrunk[..., start[0] // 4, start[1] // 4]
    torch.testing.assert_close(imresize(image, 1 / 4)[..., 0, 0], expected, rtol=0, atol=1e-13)


def test_mirrored_and_transposed_images_give_mirrored_and_transposed_results() -> None:
    image = _random(2, 12, 20)
    for scale in (1 / 4, 2.0):
        resized = imresize(image, scale)
        torch.testing.assert_close(imresize(image.flip(-1), scale), resized.flip(-1), rtol=0, atol=1e-13)
        torch.testing.assert_close(imresize(image.mT, scale), resized.mT, rtol=0, atol=1e-13)


def test_size_gives_each_axis_its_own_scale() -> None:
    image = _random(3, 12, 20)
    torch.testing.assert_close(imresize(image, size=(24, 40)), imresize(image, 2.0))
    both = imresize(image, size=(6, 60))
    assert both.shape == (3, 6, 60)
    torch.testing.assert_close(both, imresize(imresize(image, size=(6, 20)), size=(6, 60)), rtol=0, atol=1e-13)


def test_leading_axes_are_planes_of_their_own() -> None:
    image = _random(2, 3, 4, 10, 14, dtype=torch.float32)
    resized = imresize(image, 1 / 2)
    assert resized.shape == (2, 3, 4, 5, 7)
    assert resized.dtype == torch.float32
    assert resized.is_contiguous()
    for index in ((0, 0, 0), (1, 2, 3)):
        torch.testing.assert_close(resized[index], imresize(image[index], 1 / 2))


@pytest.mark.parametrize("scale", [1 / 2, 2.0])
def test_gradient(scale: float) -> None:
    assert torch.autograd.gradcheck(lambda image: imresize(image, scale), _random(2, 5, 6).requires_grad_())


def test_first_use_in_inference_mode_does_not_spoil_training() -> None:
    with torch.inference_mode():
        imresize(torch.rand(1, 41, 43), 1 / 2)
    image = torch.rand(1, 41, 43, requires_grad=True)
    imresize(image, 1 / 2).sum().backward()
    assert image.grad is not None


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(3, 8, 8), {}, "either scale or size"),
        (torch.zeros(3, 8, 8), {"scale": 2.0, "size": (4, 4)}, "either scale or size"),
        (torch.zeros(3, 8, 8), {"scale": 0.0}, "positive scale"),
        (torch.zeros(3, 8, 8), {"size": (0, 4)}, "positive scale"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), {"scale": 2.0}, "float32 or float64"),
        (torch.zeros(8), {"scale": 2.0}, "float32 or float64"),
        (torch.zeros(3, 0, 8), {"scale": 2.0}, "empty"),
    ],
)
def test_wrong_arguments_are_explained(image: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imresize(image, **options)
