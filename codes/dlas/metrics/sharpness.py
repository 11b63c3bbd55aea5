"""How sharp pictures are, told by the lengths of their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.metrics.base import SampleMetric
from dlas.metrics.images import compared_pixels
from dlas.registry import METRICS
from dlas.types import NonNegativeInt


def gradient_lengths(image: Tensor) -> Tensor:
    """Lengths of the gradient by Sobel's filters over 8, where they lie inside: (N, 1, H, W) -> (N, (H - 2) (W - 2)).

    A ramp of slope 1 a pixel has the length 1.
    """
    across = image[..., 2:] - image[..., :-2]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    down = image[..., 2:, :] - image[..., :-2, :]
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return ((across / 8).square() + (down / 8).square()).sqrt().flatten(1)


def _lengths(prediction: Tensor, target: Tensor, crop_border: int) -> tuple[Tensor, Tensor]:
    pixels = compared_pixels(prediction, target, crop_border, test_y_channel=prediction.shape[-3] == 3)
    first, second = (each.mean(1, keepdim=True) for each in pixels)
    if min(first.shape[-2:]) < 3:
        raise ValueError(f"gradients need 3x3 pixels, but {first.shape[-2]}x{first.shape[-1]} are left")
    return gradient_lengths(first), gradient_lengths(second)


@METRICS.register("sharpness")
def sharpness(prediction: Tensor, target: Tensor, /, *, crop_border: NonNegativeInt = 0) -> Tensor:
    """Mean length of the luma's gradient over that of the true picture: 1 is as sharp, below 1 blurred, above 1 too sharp.

    Noise counts as sharpness, so it says nothing alone: read it beside a distance. Infinite where the true picture is flat.

    Args:
        crop_border: pixels left out at each side.
    """
    first, second = _lengths(prediction, target, crop_border)
    return (first.mean(1) / second.mean(1)).reshape(prediction.shape[:-3])


@METRICS.register("gradient_w1")
class GradientW1(SampleMetric):
    """Wasserstein-1 distance between the distributions of the lengths of the luma's gradient, in 8-bit steps a pixel.

    0 where a picture has gradients as often and as long as the true one, wherever they are; lower is better.

    Args:
        crop_border: pixels left out at each side.

    Source: the statistics of gradients as a measure of naturalness: Cho et al., "Image Restoration by Matching Gradient
    Distributions", 2012.
    """

    higher_is_better = False

    def __init__(self, *, crop_border: NonNegativeInt = 0) -> None:
        super().__init__()
        self.crop_border = crop_border

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        first, second = _lengths(prediction, target, self.crop_border)
        return (torch.sort(first, 1).values - torch.sort(second, 1).values).abs().mean(1)
