"""PSNR, SSIM, colour, rounding to 8 bits and accumulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dlas.errors import ConfigurationError
from dlas.layers.color import rgb_to_y, rgb_to_ycbcr
from dlas.metrics import Average, create_metric, psnr, quantize_8bit, ssim
from dlas.registry import METRICS


def _image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# PSNR


@pytest.mark.parametrize("offset", [1, 5, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_of_a_constant_offset(offset: int, channels: int) -> None:
    target = _image(2, channels, 16, 16) * 0.5
    value = psnr(target + offset / 255, target, 0, False)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, torch.full((2,), 20 * math.log10(255 / offset), dtype=torch.float64), rtol=1e-5, atol=0)


def test_psnr_on_y_weighs_the_channels() -> None:
    target = _image(3, 16, 16) * 0.5
    for channel, weight in enumerate((65.481, 128.553, 24.966)):
        prediction = target.clone()
        prediction[channel] += 10 / 255
        expected = 20 * math.log10(255 / (10 * weight / 255))
        assert psnr(prediction, target, 0, True).item() == pytest.approx(expected, rel=1e-5)


def test_psnr_of_equal_images_is_infinite() -> None:
    image = _image(2, 3, 16, 16)
    assert torch.equal(psnr(image, image, 0, False), torch.full((2,), torch.inf, dtype=torch.float64))


def test_psnr_uses_one_error_for_all_channels() -> None:
    target = torch.zeros(3, 12, 12)
    prediction = target.clone()
    prediction[0] = 30 / 255
    assert psnr(prediction, target, 0, False).item() == pytest.approx(20 * math.log10(255 / 30) + 10 * math.log10(3), rel=1e-6)


# SSIM


def test_ssim_of_equal_images_is_one() -> None:
    image = _image(2, 3, 20, 17)
    torch.testing.assert_close(ssim(image, image, 2, False), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_ssim_of_two_constants() -> None:
    first, second = 0.2 * 255, 0.6 * 255
    constant = (0.01 * 255) ** 2
    expected = (2 * first * second + constant) / (first**2 + second**2 + constant)
    images = [torch.full((1, 11, 11), level, dtype=torch.float64) for level in (0.2, 0.6)]
    value = ssim(*images, 0, False)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_ssim_by_its_definition() -> None:
    """Every window by itself, with the two-dimensional Gaussian."""
    prediction, target = _image(1, 14, 13).double() * 255, _image(1, 14, 13, seed=1).double() * 255
    axis = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(4):
        for column in range(3):
            x = prediction[0, row : row + 11, column : column + 11]
            y = target[0, row : row + 11, column : column + 11]
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            variance_x, variance_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 2.55**2, 7.65**2
            numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
            values.append(numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)))
    torch.testing.assert_close(ssim(prediction / 255, target / 255, 0, False), torch.stack(values).mean(), rtol=1e-10, atol=0)


# Both


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("luma", [False, True])
def test_symmetric_and_per_image(metric, luma: bool) -> None:
    first, second = _image(3, 3, 20, 24), _image(3, 3, 20, 24, seed=1)
    values = metric(first, second, 3, luma)
    assert values.shape == (3,)
    torch.testing.assert_close(values, metric(second, first, 3, luma), rtol=1e-12, atol=0)
    alone = metric(first[1], second[1], 3, luma)
    assert alone.shape == ()
    torch.testing.assert_close(alone, values[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_crop_border_hides_the_border(metric) -> None:
    target = _image(3, 24, 24)
    prediction = target.clone()
    prediction[:, :4] = prediction[:, -4:] = 0
    prediction[..., :4] = prediction[..., -4:] = 0
    assert metric(prediction, target, 4, False) == metric(target, target, 0, False)
    assert metric(prediction, target, 3, False) < metric(target, target, 0, False)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("prediction", "target", "crop", "luma", "message"),
    [
        (_image(3, 16, 16), _image(3, 16, 17), 0, False, "same shape"),
        (_image(1, 16, 16), _image(3, 16, 16), 0, False, "same shape"),
        (_image(16, 16), _image(16, 16), 0, False, r"\(N, C, H, W\)"),
        (_image(3, 16, 16), _image(3, 16, 16), 8, False, "leaves nothing"),
        (_image(3, 16, 16), _image(3, 16, 16), -1, False, "0 or more"),
        (_image(1, 16, 16), _image(1, 16, 16), 0, True, "RGB"),
        (_image(3, 16, 16), torch.zeros(3, 16, 16, dtype=torch.uint8), 0, False, "must be float"),
    ],
)
def test_wrong_images_are_explained(metric, prediction: Tensor, target: Tensor, crop: int, luma: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(prediction, target, crop, luma)


def test_ssim_needs_room_for_its_window() -> None:
    image = _image(3, 16, 16)
    assert ssim(image, image, 2, False).isfinite()
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(image, image, 3, False)


# Colour and rounding


def test_luma_range_and_agreement() -> None:
    black, white = torch.zeros(3, 1, 1).double(), torch.ones(3, 1, 1).double()
    assert rgb_to_y(black).item() * 255 == pytest.approx(16)
    assert rgb_to_y(white).item() * 255 == pytest.approx(235)
    for grey in (black, white):  # no colour: both chroma channels in the middle
        torch.testing.assert_close(rgb_to_ycbcr(grey)[1:] * 255, torch.full((2, 1, 1), 128.0).double(), rtol=0, atol=1e-10)
    image = _image(2, 3, 5, 4)
    assert rgb_to_y(image).shape == (2, 1, 5, 4)
    torch.testing.assert_close(rgb_to_ycbcr(image)[:, :1], rgb_to_y(image))
    with pytest.raises(ValueError, match="RGB"):
        rgb_to_y(image[:, :1])


def test_quantize_8bit() -> None:
    image = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 100.2 / 255, 1.0, 7.0])
    torch.testing.assert_close(quantize_8bit(image) * 255, torch.tensor([0.0, 0, 0, 1, 100, 255, 255]))
    levels = torch.arange(256) / 255
    assert torch.equal(quantize_8bit(levels), levels)


# Registered metrics and accumulation


@pytest.mark.parametrize(
    ("name", "function", "luma"), [("psnr", psnr, False), ("ssim", ssim, False), ("psnr_y", psnr, True), ("ssim_y", ssim, True)]
)
def test_registered_by_the_names_of_papers(name: str, function, luma: bool) -> None:
    assert [parameter.name for parameter in METRICS.find(name).parameters] == ["crop_border"]
    prediction, target = _image(2, 3, 20, 20), _image(2, 3, 20, 20, seed=1)
    assert torch.equal(METRICS.create(name, {"crop_border": 2}, prediction, target), function(prediction, target, 2, luma))


def test_created_metric_averages_over_samples_and_merges() -> None:
    prediction, target = _image(5, 3, 20, 20), _image(5, 3, 20, 20, seed=1)
    options = {"type": "psnr_y", "crop_border": 4}
    first, second = create_metric(options), create_metric(options)
    values = [first.update(prediction[:2], target[:2]), second.update(prediction[2:], target[2:])]
    first.merge(second)
    expected = psnr(prediction, target, 4, True)
    torch.testing.assert_close(torch.cat(values), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(first.compute(), expected.mean(), rtol=1e-12, atol=0)


def test_metric_without_a_type_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="psnr_y"):
        create_metric({"crop_border": 4})


def test_average_does_not_depend_on_the_pieces() -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1e6
    whole, first, second = Average(), Average(), Average()
    whole.update(values)
    for value in values[:300]:
        first.update(value)
    second.update(values[300:])
    first.merge(second)
    torch.testing.assert_close(first.compute(), values.double().mean(), rtol=1e-14, atol=0)
    torch.testing.assert_close(first.compute(), whole.compute(), rtol=1e-14, atol=0)


def test_average_with_equal_images_says_so() -> None:
    average = Average()
    average.update(torch.tensor([30.0, 34.0]))
    average.update(torch.tensor([torch.inf]))
    assert average.compute() == torch.inf
    assert average.compute_finite() == 32
    assert average.totals.tolist() == [64, 2, 1]


def test_average_of_nothing_or_of_nan_is_nan() -> None:
    average = Average()
    assert average.compute().isnan()
    assert average.compute_finite().isnan()
    average.update(torch.tensor([1.0, torch.nan]))
    assert average.compute().isnan()
