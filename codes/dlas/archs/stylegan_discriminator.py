"""The discriminator of the first StyleGAN, of one size from the beginning.

Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks", CVPR 2019 (arXiv:1812.04948), in
DL-Art-School's form, whose names the layers have: no activation follows the first convolution.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.fixed_size import check_size
from dlas.layers.recompute import recompute
from dlas.layers.stylegan2 import LEAK, batch_spread, filter_kernel
from dlas.registry import ARCHS
from dlas.types import PositiveInt

WIDTH_AT_4 = 4096
"""Channels at 4 pixels were there no limit; they halve with each doubling of the size."""


class Scaled(nn.Module):
    """A convolution, or with no kernel size a linear layer, whose stored weights have unit variance at first."""

    def __init__(self, in_channels: int, out_channels: int, *kernel: int, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * math.prod(kernel))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, ...) -> (batch, out_channels, ...)."""
        if self.weight.ndim == 2:
            return F.linear(x, self.weight * self.scale, self.bias)
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class Filter(nn.Module):
    """A low-pass filter of taps 1, 2, 1; zeros are around pictures."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", filter_kernel((1, 2, 1))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return F.conv2d(x, self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])


class Block(nn.Module):
    """Two convolutions; the second one's result is halved."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = Scaled(in_channels, in_channels, 3, 3)
        self.blur = Filter()
        self.conv1_down = Scaled(in_channels, out_channels, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, height / 2, width / 2)."""
        x = self.blur(F.leaky_relu(self.conv0(x), LEAK))
        return F.leaky_relu(F.avg_pool2d(self.conv1_down(x), 2), LEAK)


class Top(nn.Module):
    """A logit from features 4 pixels wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Scaled(channels + 1, channels, 3, 3)
        self.dense0 = Scaled(channels * 4 * 4, channels)
        self.dense1 = Scaled(channels, 1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, 4, 4) -> (batch, 1)."""
        x = F.leaky_relu(self.conv(torch.cat((x, batch_spread(x)), dim=1)), LEAK)
        return self.dense1(F.leaky_relu(self.dense0(x.flatten(1)), LEAK))


@ARCHS.register("stylegan_vgg")
class StyleGANDiscriminator(nn.Module):
    """StyleGAN's discriminator.

    Args:
        image_size: height and width of the pictures it judges, in pixels: a power of 2, 8 at least.
        max_channels: the most channels of any layer.

    Raises:
        ValueError: `image_size` is not such a power.
    """

    def __init__(self, *, image_size: PositiveInt = 128, max_channels: PositiveInt = 512) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of 2, 8 at least, got {image_size}")
        self.image_size = image_size
        self.checkpointing = False
        sides = [image_size >> level for level in range(image_size.bit_length() - 2)]
        widths = [min(WIDTH_AT_4 * 4 // side, max_channels) for side in sides]
        self.blocks = nn.ModuleList(Block(*pair) for pair in itertools.pairwise(widths))
        self.final_block = Top(widths[-1])
        self.from_rgb = nn.ModuleList(Scaled(3, width, 1, 1) for width in widths)
        # Those of smaller pictures are from training that grew them; checkpoints hold them.
        for unused in self.from_rgb[1:]:
            unused.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Judges pictures.

        Args:
            x: (batch, 3, image_size, image_size). A picture's logit depends on the others of its group of four.

        Returns:
            One logit a picture, (batch, 1); higher is more real.

        Raises:
            ValueError: the pictures have another size.
        """
        check_size(x, self.image_size)
        x = self.from_rgb[0](x)
        for block in self.blocks:
            x = recompute(block, x, when=self.checkpointing and self.training)
        return self.final_block(x)

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leaves out the filters by which DL-Art-School halves, which are a mean of four pixels here."""
        return {key: value for key, value in state_dict.items() if not key.endswith(".downscale.blur.kernel")}

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"image_size": 16, "max_channels": 8}, (torch.rand(4, 3, 16, 16),)
