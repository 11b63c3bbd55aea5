"""The discriminator of StyleGAN2: residual blocks that halve the picture, and the spread within the batch as one more channel.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (arXiv:1912.04958), section 4.1 and figure 7c;
the spread within a batch: Karras et al., "Progressive Growing of GANs", ICLR 2018 (arXiv:1710.10196), section 3.

The layers have the names of rosinality's implementation: ``convs.<i>.conv<k>.<j>``, ``convs.<i>.skip.<j>``, ``final_conv``,
``final_linear``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlas.layers.fixed_size import check_size
from dlas.layers.recompute import recompute
from dlas.layers.stylegan2 import BiasedActivation, Blur, EqualConv2d, EqualLinear, batch_spread, width_at
from dlas.registry import ARCHS
from dlas.types import PositiveInt


def _layers(
    in_channels: int, out_channels: int, kernel_size: int, taps: Sequence[float], *, halve: bool = False, activate: bool = True
) -> nn.Sequential:
    """A convolution, after a filter where it halves the picture and before an activation if asked for."""
    layers: list[nn.Module] = []
    if halve:
        spread = len(taps) - 2 + kernel_size - 1
        layers.append(Blur(taps, ((spread + 1) // 2, spread // 2)))
    stride, padding = (2, 0) if halve else (1, kernel_size // 2)
    layers.append(EqualConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding))
    if activate:
        layers.append(BiasedActivation(out_channels))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1x1 one; both ways halve the picture."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.conv1 = _layers(in_channels, in_channels, 3, taps)
        self.conv2 = _layers(in_channels, out_channels, 3, taps, halve=True)
        self.skip = _layers(in_channels, out_channels, 1, taps, halve=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height / 2, width / 2)."""
        return (self.conv2(self.conv1(x)) + self.skip(x)) / math.sqrt(2)


@ARCHS.register("stylegan2_rosinality_disc")
class StyleGAN2Discriminator(nn.Module):
    """StyleGAN2's discriminator with residual blocks.

    Args:
        size: height and width of the pictures it judges, in pixels: a power of 2, 8 at least.
        channel_multiplier: factor on the channels at 64 pixels and above.
        blur_kernel: taps of the filter before each halving.
        max_channels: the most channels of any layer.

    Raises:
        ValueError: `size` is not such a power.
    """

    def __init__(
        self,
        *,
        size: PositiveInt,
        channel_multiplier: PositiveInt = 2,
        blur_kernel: Sequence[int] = (1, 3, 3, 1),
        max_channels: PositiveInt = 512,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"size must be a power of 2, 8 at least, got {size}")
        self.size = size
        self.checkpointing = False
        blocks: list[nn.Module] = []
        side = size
        width = width_at(side, channel_multiplier, max_channels)
        blocks.append(_layers(3, width, 1, blur_kernel))
        while side > 4:
            side //= 2
            wider = width_at(side, channel_multiplier, max_channels)
            blocks.append(ResidualBlock(width, wider, blur_kernel))
            width = wider
        self.convs = nn.Sequential(*blocks)
        self.final_conv = _layers(width + 1, width, 3, blur_kernel)
        self.final_linear = nn.Sequential(EqualLinear(width * 4 * 4, width, activate=True), EqualLinear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Judges pictures.

        Args:
            x: (batch, 3, size, size). The batch is cut into groups of 4, or of the largest number below that divides it: a
                picture's logit depends on the others of its group.

        Returns:
            One logit a picture, (batch, 1); higher is more real.

        Raises:
            ValueError: the pictures have another size.
        """
        check_size(x, self.size)
        for block in self.convs:
            x = recompute(block, x, when=self.checkpointing and self.training)
        x = self.final_conv(torch.cat((x, batch_spread(x)), dim=1))
        return self.final_linear(x.flatten(1))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"size": 16, "max_channels": 8}, (torch.rand(4, 3, 16, 16),)
