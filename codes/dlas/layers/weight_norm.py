"""Convolutions whose weight is a direction and a length, under the names that weight normalisation had before PyTorch 2.0.

Salimans and Kingma, "Weight Normalization", NeurIPS 2016 (arXiv:1602.07868), equation 2. The published vocoders have tensors
``weight_g`` and ``weight_v``; what `torch.nn.utils.parametrizations.weight_norm` makes has other names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _WeightNormed(nn.Module):
    """Keeps the weight of `conv` as ``weight_g`` (of its first axis) and ``weight_v``.

    Args:
        conv: gives options and initial weights.
    """

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d) -> None:
        super().__init__()
        initial = conv.weight.detach()
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(initial, dim=tuple(range(1, initial.ndim)), keepdim=True))
        self.weight_v = nn.Parameter(initial.clone())
        self.bias = conv.bias if conv.bias is None else nn.Parameter(conv.bias.detach())
        assert not isinstance(conv.padding, str), "padding is told in samples"
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.output_padding = conv.output_padding
        self.reflects = conv.padding_mode == "reflect"

    @property
    def normed_weight(self) -> Tensor:
        """The weight as the convolution uses it."""
        if (folded := self._parameters.get("weight")) is not None:
            return folded
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def fold(self) -> None:
        """Makes the weight one tensor ``weight``, for inference: it is not computed at each use any more."""
        if "weight" in self._parameters:
            return
        weight = self.normed_weight.detach()
        del self.weight_g, self.weight_v
        self.weight = nn.Parameter(weight)


class WeightNormConv1d(_WeightNormed):
    """A convolution of sequences; the arguments are those of `torch.nn.Conv1d`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(nn.Conv1d(*arguments, **options))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) -> (B, out_channels, T')."""
        padding = self.padding
        if self.reflects:
            x, padding = F.pad(x, (padding[0], padding[0]), mode="reflect"), (0,) * len(padding)
        return F.conv1d(x, self.normed_weight, self.bias, self.stride, padding, self.dilation)


class WeightNormConv2d(_WeightNormed):
    """A convolution of maps with zeros around them; the arguments are those of `torch.nn.Conv2d`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(nn.Conv2d(*arguments, **options))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        return F.conv2d(x, self.normed_weight, self.bias, self.stride, self.padding, self.dilation)


class WeightNormConvTranspose1d(_WeightNormed):
    """A transposed convolution of sequences; the arguments are those of `torch.nn.ConvTranspose1d`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(nn.ConvTranspose1d(*arguments, **options))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) -> (B, out_channels, T')."""
        weight = self.normed_weight
        return F.conv_transpose1d(x, weight, self.bias, self.stride, self.padding, self.output_padding, 1, self.dilation)


def fold_weight_norm(network: nn.Module) -> nn.Module:
    """Folds every weight-normalised convolution of a network, in place, for inference."""
    for module in network.modules():
        if isinstance(module, _WeightNormed):
            module.fold()
    return network
