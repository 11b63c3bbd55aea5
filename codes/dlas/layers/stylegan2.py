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

DEMODULATION_EPS = 1e-8
"""Added to the squared norm of a modulated kernel."""

GROUP = 4
"""Pictures of which the spread is taken together, at most."""

WIDTH_AT_64 = 256
"""Channels at 64 pixels for a multiplier of 1; they halve with each doubling of the size."""


def width_at(side: int, multiplier: int, most: int) -> int:
    """Channels of features that are `side` pixels high and wide."""
    return min(512 if side < 64 else WIDTH_AT_64 * multiplier * 64 // side, most)


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
        gain: factor on the filter: 4 behind zeros in the place of three of four pixels.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float], pad: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__()
        self.pad = pad
        self.register_buffer("kernel", filter_kernel(taps) * gain)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, height + pads - taps + 1, ...)."""
        return filter_resample(x, self.kernel, pad=self.pad)


class Upsample(nn.Module):
    """Twice the size: zeros between pixels, and a low-pass filter.

    Args:
        taps: of the separable filter.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        spread = len(taps) - 2
        self.pad = (spread + 1) // 2 + 1, spread // 2
        self.register_buffer("kernel", filter_kernel(taps) * 4)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, 2 height, 2 width)."""
        return filter_resample(x, self.kernel, up=2, pad=self.pad)


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


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels each picture's style scales.

    The scaled weights' norms are divided out again (demodulation), so that styles act within this layer alone. Input and output
    are scaled in the place of the weights, which is the same and needs one convolution for all pictures.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd.
        style_dim: size of a style.
        taps: of the filter behind upsampling; None: the size stays.
        demodulate: whether the norms are divided out.

    Source: Karras et al. 2020 (arXiv:1912.04958), section 2.2, equations 1 to 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        style_dim: int,
        *,
        taps: Sequence[float] | None = None,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.padding = kernel_size // 2
        self.blur = None
        if taps is not None:
            spread = len(taps) - 2 - (kernel_size - 1)
            self.blur = Blur(taps, ((spread + 1) // 2 + 1, spread // 2 + 1), gain=4)
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_dim, in_channels, bias=1.0)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Convolves each picture in its style.

        Args:
            x: (batch, in_channels, height, width).
            style: (batch, style_dim).

        Returns:
            (batch, out_channels, height, width), or twice the height and width behind upsampling.
        """
        factors = self.modulation(style)
        weight = self.weight[0] * self.scale
        x = x * factors[:, :, None, None].to(x.dtype)
        if self.blur is None:
            x = F.conv2d(x, weight, padding=self.padding)
        else:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        if self.demodulate:
            with torch.autocast(x.device.type, enabled=False):
                power = F.linear(factors.float().square(), weight.float().square().sum((2, 3)))
                norms = torch.rsqrt(power + DEMODULATION_EPS)
            x = x * norms[:, :, None, None].to(x.dtype)
        return x


class NoiseInjection(nn.Module):
    """Adds noise, the same to all channels, in a strength that is learned; none at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """x: (batch, channels, height, width); noise: (batch or 1, 1, height, width)."""
        return x + self.weight * noise


class StyledConv(nn.Module):
    """A modulated 3x3 convolution, noise, and a biased activation.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        style_dim: size of a style.
        taps: of the filter behind upsampling; None: the size stays.
    """

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, *, taps: Sequence[float] | None = None) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, style_dim, taps=taps)
        self.noise = NoiseInjection()
        self.activate = BiasedActivation(out_channels)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, ...).

        Args:
            x: features.
            style: (batch, style_dim).
            noise: (batch or 1, 1, height, width) of the output; None: drawn anew for each picture.
        """
        x = self.conv(x, style)
        if noise is None:
            noise = torch.randn_like(x[:, :1])
        return self.activate(self.noise(x, noise))


class ToRGB(nn.Module):
    """A picture from features, added to the picture of half the size.

    Args:
        in_channels: of the features.
        style_dim: size of a style.
        taps: of the filter that enlarges the smaller picture; None: there is none.
    """

    def __init__(self, in_channels: int, style_dim: int, *, taps: Sequence[float] | None = None) -> None:
        super().__init__()
        self.upsample = None if taps is None else Upsample(taps)
        self.conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, smaller: Tensor | None = None) -> Tensor:
        """A picture (batch, 3, height, width).

        Args:
            x: (batch, in_channels, height, width).
            style: (batch, style_dim).
            smaller: (batch, 3, height / 2, width / 2), where the layer has a filter.
        """
        picture = self.conv(x, style) + self.bias
        if self.upsample is not None and smaller is not None:
            picture = picture + self.upsample(smaller)
        return picture


def batch_spread(x: Tensor) -> Tensor:
    """Mean standard deviation over channels and places within a group of pictures, as one more channel of each of them."""
    batch, _, height, width = x.shape
    group = next(count for count in range(min(GROUP, batch), 0, -1) if batch % count == 0)
    grouped = x.float().view(group, batch // group, -1)
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean(1)
    return deviation.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, height, width)
