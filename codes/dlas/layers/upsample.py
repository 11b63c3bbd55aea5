"""Enlargement of features by sub-pixel convolution."""

from __future__ import annotations

from torch import nn


class SubPixelUpsample(nn.Sequential):
    """A 3x3 convolution and a pixel shuffle for each factor of 2, or one of each for a factor of 3.

    Its entries are named ``0.weight``, ``2.weight``, as in EDSR, RCAN, SwinIR and those that follow them.

    Args:
        scale: a power of 2, or 3.
        channels: of the input and of the output.

    Raises:
        ValueError: another scale.

    Source: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
    Network", CVPR 2016 (arXiv:1609.05158), equation 4.
    """

    def __init__(self, scale: int, channels: int) -> None:
        if scale == 3:
            factors = [3]
        elif scale > 0 and scale & (scale - 1) == 0:
            factors = [2] * (scale.bit_length() - 1)
        else:
            raise ValueError(f"scale must be 1, 2, 3, 4, 8 or a higher power of 2, got {scale}")
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(channels, channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        super().__init__(*layers)
