"""SRVGGNetCompact, the small network of Real-ESRGAN: plain convolutions at the input's size and one pixel shuffle.

Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCV workshops 2021
(arXiv:2107.10833); the network came with the release of its models for general pictures and for anime video.

The layers have the names of published checkpoints: ``body.<i>``, where convolutions and activations take turns.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.registry import ARCHS
from dlas.types import PositiveInt

LEAK = 0.1
"""Slope of the leaky ReLUs below zero."""


@ARCHS.register("SRVGGNetCompact", "compact")
class SRVGGNetCompact(nn.Module):
    """The generator of realesr-general-x4v3 (`num_conv` 32) and realesr-animevideov3 (16, the default).

    Args:
        num_in_ch: input channels.
        num_out_ch: output channels.
        num_feat: width.
        num_conv: convolutions between the first and the last.
        scale: enlargement.
        act_type: what follows every convolution but the last: `prelu` (a learned slope a channel), `relu`, or `leakyrelu`
            (0.1).

    Raises:
        ValueError: `act_type` is not one of these, or input and output channels differ.
    """

    def __init__(
        self,
        *,
        num_in_ch: PositiveInt = 3,
        num_out_ch: PositiveInt = 3,
        num_feat: PositiveInt = 64,
        num_conv: PositiveInt = 16,
        scale: PositiveInt = 4,
        act_type: Literal["prelu", "relu", "leakyrelu"] = "prelu",
    ) -> None:
        super().__init__()
        if num_in_ch != num_out_ch:
            raise ValueError(f"the input is added to the output, so num_in_ch ({num_in_ch}) must be num_out_ch ({num_out_ch})")
        self.scale = scale
        self.body = nn.ModuleList()
        channels = num_in_ch
        for _ in range(num_conv + 1):
            self.body += [nn.Conv2d(channels, num_feat, 3, padding=1), _activation(act_type, num_feat)]
            channels = num_feat
        self.body.append(nn.Conv2d(num_feat, num_out_ch * scale**2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, num_in_ch, height, width), RGB in [0, 1].

        Returns:
            (batch, num_out_ch, height * scale, width * scale), not clamped.
        """
        features = x
        for layer in self.body:
            features = layer(features)
        return F.pixel_shuffle(features, self.scale) + F.interpolate(x, scale_factor=float(self.scale), mode="nearest")

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"num_feat": 8, "num_conv": 3}, (torch.rand(2, 3, 12, 9),)


def _activation(kind: str, channels: int) -> nn.Module:
    if kind == "prelu":
        return nn.PReLU(channels)
    if kind == "relu":
        return nn.ReLU(inplace=True)
    if kind == "leakyrelu":
        return nn.LeakyReLU(LEAK, inplace=True)
    raise ValueError(f"act_type must be prelu, relu or leakyrelu, got {kind!r}")
