"""Structural similarity, at one scale and at several."""

from __future__ import annotations

from torch import Tensor

from dlas.layers.ssim import WINDOW, multiscale_similarity, similarity
from dlas.metrics.images import compared_pixels
from dlas.registry import METRICS
from dlas.types import NonNegativeInt


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
    if min(height, width) < WINDOW:
        raise ValueError(
            f"SSIM needs at least {WINDOW}x{WINDOW} pixels, but {height}x{width} are left after cropping {crop_border} "
            "at each side; use larger images or a smaller crop_border"
        )
    return similarity(x, y, 255)[0].mean(1).reshape(prediction.shape[:-3])


def ms_ssim(prediction: Tensor, target: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """Multi-scale structural similarity over five scales, computed per channel in float64; the mean over channels.

    Args:
        prediction: (N, C, H, W) or (C, H, W), RGB or grey, in [0, 1], with at least 161 pixels a side after cropping.
        target: same shape and range.
        crop_border: pixels left out at each side.
        test_y_channel: compare the unrounded BT.601 luma (16..235) of RGB images.

    Returns:
        float64, (N,), or without dimensions for a single image; 1 where the images are equal.

    Raises:
        ValueError: the images do not fit each other, `crop_border` or `test_y_channel`, or are too small.

    Source: Z. Wang et al., "Multiscale structural similarity for image quality assessment", 2003, eq. 7.
    """
    x, y = compared_pixels(prediction, target, crop_border, test_y_channel)
    return multiscale_similarity(x, y, 255).mean(1).reshape(prediction.shape[:-3])


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


@METRICS.register("ms_ssim")
def ms_ssim_rgb(prediction: Tensor, target: Tensor, /, *, crop_border: NonNegativeInt = 0) -> Tensor:
    """Multi-scale structural similarity, mean over the channels, at most 1, higher is better. Pictures of 161 pixels or more.

    Args:
        crop_border: pixels left out at each side.
    """
    return ms_ssim(prediction, target, crop_border)


@METRICS.register("ms_ssim_y")
def ms_ssim_y(prediction: Tensor, target: Tensor, /, *, crop_border: NonNegativeInt = 0) -> Tensor:
    """Multi-scale structural similarity of the BT.601 luma (16..235), at most 1, higher is better. Of 161 pixels or more.

    Args:
        crop_border: pixels left out at each side.
    """
    return ms_ssim(prediction, target, crop_border, test_y_channel=True)
