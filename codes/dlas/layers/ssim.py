"""Structural similarity of two pictures at one scale and at several."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.host import constant

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales: Wang et al., "Multiscale structural similarity", 2003, section 4."""
WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def similarity(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Means of l(x, y) cs(x, y) and of cs(x, y) over the places where an 11x11 Gaussian window (sigma 1.5) lies inside.

    Args:
        x: (N, C, H, W), float32 or float64, H and W at least 11.
        y: same shape and type.
        data_range: difference of the largest and smallest possible value: 1 or 255.

    Returns:
        SSIM and its part that compares contrast and structure, (N, C) each.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13.
    """
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def multiscale_similarity(x: Tensor, y: Tensor, data_range: float, scales: int = 5) -> Tensor:
    """MS-SSIM: the product of powers of contrast and structure at each scale, and of SSIM at the last.

    Between scales pictures are halved by the mean of 2x2 pixels; of an odd side the last pixel stands for itself, as in the
    authors' code. With fewer than five scales, the first exponents are taken and made to sum to 1.

    Args:
        x: (N, C, H, W), float32 or float64.
        y: same shape and type.
        data_range: as in `similarity`.
        scales: 1 to 5.

    Returns:
        (N, C).

    Raises:
        ValueError: the pictures are too small for the number of scales.

    Source: Wang et al., "Multiscale structural similarity for image quality assessment", 2003, eq. 7.
    """
    if not 1 <= scales <= len(SCALE_WEIGHTS):
        raise ValueError(f"MS-SSIM has 1 to {len(SCALE_WEIGHTS)} scales, not {scales}")
    smallest = (WINDOW - 1) * 2 ** (scales - 1) + 1
    if min(x.shape[-2:]) < smallest:
        raise ValueError(
            f"MS-SSIM with {scales} scales needs pictures of at least {smallest}x{smallest} pixels, not "
            f"{x.shape[-2]}x{x.shape[-1]}; use larger ones or fewer scales"
        )
    used = SCALE_WEIGHTS[:scales]
    weights = [weight / sum(used) for weight in used] if scales < len(SCALE_WEIGHTS) else list(used)
    product = torch.ones((), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(weights):
        whole, structure = similarity(x, y, data_range)
        # Powers of negative numbers do not exist, and at zero the slope is infinite.
        product = product * (whole if scale == scales - 1 else structure).clamp_min(1e-6) ** weight
        if scale < scales - 1:
            x, y = (F.avg_pool2d(each, 2, ceil_mode=True) for each in (x, y))
    return product


def _blur(image: Tensor) -> Tensor:
    """Gaussian mean over the window, valid region: (N, C, H, W) -> (N, C, H - 10, W - 10)."""
    weights = [math.exp(-0.5 * ((i - WINDOW // 2) / _SIGMA) ** 2) for i in range(WINDOW)]
    weights = [weight / sum(weights) for weight in weights]
    if image.dtype == torch.float64:
        return _shifted_sums(image, weights)
    channels = image.shape[1]
    kernel = constant(weights, image.device, image.dtype).expand(channels, 1, 1, WINDOW)
    return F.conv2d(F.conv2d(image, kernel, groups=channels), kernel.mT, groups=channels)


def _shifted_sums(image: Tensor, weights: list[float]) -> Tensor:
    """As above: torch has no fast convolution in float64 on CPU."""
    for axis in (-2, -1):
        length = image.shape[axis] - WINDOW + 1
        blurred = image.narrow(axis, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], start=1):
            blurred = blurred.add_(image.narrow(axis, shift, length), alpha=weight)
        image = blurred
    return image
