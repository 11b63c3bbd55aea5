"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.metrics.images import compared_pixels
from dlas.registry import METRICS
from dlas.types import NonNegativeInt


def psnr(prediction: Tensor, target: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """PSNR = 10 log10(255^2 / MSE), with one mean squared error over all pixels and channels of an image.

    Computed in float64 without waiting for the device. Images are compared as they are: see `quantize_8bit`.

    Args:
        prediction: (N, C, H, W) or (C, H, W), RGB or grey, in [0, 1].
        target: same shape and range.
        crop_border: pixels left out at each side; for super-resolution usually the scale.
        test_y_channel: compare the unrounded BT.601 luma (16..235) of RGB images.

    Returns:
        dB, float64, (N,), or without dimensions for a single image. Infinite where the images are equal.

    Raises:
        ValueError: the images do not fit each other, `crop_border` or `test_y_channel`.
    """
    first, second = compared_pixels(prediction, target, crop_border, test_y_channel)
    error = (first - second).square().mean((1, 2, 3))
    return (10 * torch.log10(255.0**2 / error)).reshape(prediction.shape[:-3])


@METRICS.register("psnr")
def psnr_rgb(prediction: Tensor, target: Tensor, /, *, crop_border: NonNegativeInt = 0) -> Tensor:
    """PSNR over all channels, dB, higher is better; infinite for equal images.

    Args:
        crop_border: pixels left out at each side.
    """
    return psnr(prediction, target, crop_border)


@METRICS.register("psnr_y")
def psnr_y(prediction: Tensor, target: Tensor, /, *, crop_border: NonNegativeInt = 0) -> Tensor:
    """PSNR of the BT.601 luma (16..235), dB, higher is better; infinite for equal images.

    Args:
        crop_border: pixels left out at each side; tables for super-resolution use the scale.
    """
    return psnr(prediction, target, crop_border, test_y_channel=True)
