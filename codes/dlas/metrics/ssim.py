"""Structural similarity."""

from __future__ import annotations

import math

from torch import Tensor

from dlas.metrics.images import compared_pixels
from dlas.registry import METRICS
from dlas.types import NonNegativeInt

_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


def ssim(prediction: Tensor, target: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """Mean structural similarity with an 11x11 Gaussian window (sigma 1.5), where the window lies wholly inside the image.

    Computed per channel in float64 on the scale 0..255 without waiting for the device; the result is the mean over channels.
    Images are compared as they are: see `quantize_8bit`.

    Args:
        prediction: (N, C, H, W) or (C, H, W), RGB or grey, in [0, 1].
        target: same shape and range.
        crop_border: pixels left out at each side; for super-resolution usually the scale.
        test_y_channel: compare the unrounded BT.601 luma (16..235) of RGB images.

    Returns:
        float64, (N,), or without dimensions for a single image; 1 where the images are equal.

    Raises:
        ValueError: the images do not fit each other, `crop_border` or `test_y_channel`, or are smaller than the window.

    Source: Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13
        (K1 = 0.01, K2 = 0.03).
    """
    x, y = compared_pixels(prediction, target, crop_border, test_y_channel)
    height, width = x.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(
            f"SSIM needs at least {_WINDOW}x{_WINDOW} pixels, but {height}x{width} are left after cropping {crop_border} "
            "at each side; use larger images or a smaller crop_border"
        )
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean((1, 2, 3)).reshape(prediction.shape[:-3])


def _blur(image: Tensor) -> Tensor:
    """Gaussian mean over the window, valid region: (N, C, H, W) -> (N, C, H - 10, W - 10)."""
    weights = [math.exp(-0.5 * ((i - _WINDOW // 2) / _SIGMA) ** 2) for i in range(_WINDOW)]
    for axis in (-2, -1):
        length = image.shape[axis] - _WINDOW + 1
        # Shifted sums: torch has no fast convolution in float64 on CPU.
        blurred = image.narrow(axis, 0, length) * (weights[0] / sum(weights))
        for shift, weight in enumerate(weights[1:], start=1):
            blurred.add_(image.narrow(axis, shift, length), alpha=weight / sum(weights))
        image = blurred
    return image


@METRICS.register("ssim")
def ssim_rgb(prediction: Tensor, target: Tensor, /, *, crop_border: NonNegativeInt = 0) -> Tensor:
    """Structural similarity, mean over the channels, at most 1, higher is better.

    Args:
        crop_border: pixels left out at each side.
    """
    return ssim(prediction, target, crop_border)


@METRICS.register("ssim_y")
def ssim_y(prediction: Tensor, target: Tensor, /, *, crop_border: NonNegativeInt = 0) -> Tensor:
    """Structural similarity of the BT.601 luma (16..235), at most 1, higher is better.

    Args:
        crop_border: pixels left out at each side; tables for super-resolution use the scale.
    """
    return ssim(prediction, target, crop_border, test_y_channel=True)
