"""Layers of StyleGAN2: weights scaled where they are used, biased activations, and filtered resampling.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (arXiv:1912.04958). State-dict names are those
of the PyTorch implementation by rosinality, which checkpoints of others are converted to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2
"""Slope of the leaky ReLUs below zero."""

ACTIVATION_GAIN = math.sqrt(2)
"""Keeps the variance through a leaky ReLU about as it is."""


def filter_kernel(taps: Sequence[float]) -> Tensor:
    """The separable low-pass filter of these taps, (len, len), with a sum of 1."""
    row = torch.tensor(list(taps), dtype=torch.float32)
    kernel = torch.outer(row, row)
    return kernel / kernel.sum()


def filter_resample(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Tensor:
    """Puts zeros between pixels, filters, and takes every so many pixels.

    Args:
        x: (batch, channels, height, width).
        kernel: (rows, columns), the same for all channels; the filter is a convolution, so the kernel is turned around.
        up: a pixel and `up` - 1 zeros behind it take each pixel's place, in both directions.
        down: every so many pixels are kept.
        pad: zeros before and behind, in both directions; negative numbers crop.

    Returns:
        (batch, channels, (height * up + pads - rows) // down + 1, ...).
    """
    channels = x.shape[1]
    if up > 1:
        x = F.pad(x[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1)).flatten(4).flatten(2, 3)
    x = F.pad(x, (*pad, *pad))
    weight = kernel.flip(0, 1).to(x.dtype).expand(channels, 1, -1, -1)
    return F.conv2d(x, weight, stride=down, groups=channels)


class Blur(nn.Module):
    """A low-pass filter at one size.

    Args:
        taps: of the separable filter.
        pad: zeros before and behind.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], pad: tuple[int, int]) -> None:
        super().__init__()
        self.pad = pad
        self.register_buffer("kernel", filter_kernel(taps))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, height + pads - taps + 1, ...)."""
        return filter_resample(x, self.kernel, pad=self.pad)


class EqualConv2d(nn.Module):
    """A convolution without bias whose stored weights all have unit variance at first; they are scaled where they are used.

    Source: Karras et al., "Progressive Growing of GANs", ICLR 2018 (arXiv:1710.10196), section 4.1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, ...)."""
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class EqualLinear(nn.Module):
    """A linear layer with weights scaled as those of `EqualConv2d`.

    Args:
        in_features: of the input.
        out_features: of the output.
        activate: whether a leaky ReLU follows.
        bias: first value of the bias.
        lr_mul: factor on weights and bias where they are used, by which the layer learns that much slower.
    """

    def __init__(
        self, in_features: int, out_features: int, *, activate: bool = False, bias: float = 0.0, lr_mul: float = 1.0
    ) -> None:
        super().__init__()
        self.activate = activate
        self.lr_mul = lr_mul
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_features,), bias))
        self.scale = lr_mul / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_features) -> (batch, out_features)."""
        x = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return F.leaky_relu(x, LEAK) * ACTIVATION_GAIN if self.activate else x


class BiasedActivation(nn.Module):
    """A bias a channel, a leaky ReLU and a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> the same shape."""
        return F.leaky_relu(x + self.bias.view(1, -1, *[1] * (x.ndim - 2)), LEAK) * ACTIVATION_GAIN
