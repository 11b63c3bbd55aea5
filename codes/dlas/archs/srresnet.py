"""MSRResNet: SRResNet without batch normalisation, the small baseline of BasicSR and of ESRGAN's ablations.

Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network", CVPR 2017
(arXiv:1609.04802), figure 4; without normalisation, with leaky ReLUs and with the bilinearly enlarged input added as in the
models that BasicSR publishes.

The layers have the names of these models: ``conv_first``, ``body.<i>.conv<k>``, ``upconv<k>``, ``conv_hr``, ``conv_last``.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute
from dlas.registry import ARCHS
from dlas.types import PositiveInt

LEAK = 0.1
"""Slope of the leaky ReLUs below zero."""

INITIAL_WEIGHT_SCALE = 0.1
"""All weights are drawn this much smaller than usual, so that the network starts near bilinear enlargement."""


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x + self.conv2(F.relu_(self.conv1(x)))


@ARCHS.register("MSRResNet", "SRResNet")
class MSRResNet(nn.Module):
    """SRResNet without batch normalisation; the defaults are BasicSR's MSRResNet_x4_f64b16 and the generator of MSRGAN.

    Args:
        num_in_ch: input channels.
        num_out_ch: output channels.
        num_feat: width.
        num_block: residual blocks.
        scale: enlargement: 2, 3 or 4.

    Raises:
        ValueError: `scale` is another, or input and output channels differ.
    """

    def __init__(
        self,
        *,
        num_in_ch: PositiveInt = 3,
        num_out_ch: PositiveInt = 3,
        num_feat: PositiveInt = 64,
        num_block: PositiveInt = 16,
        scale: Literal[2, 3, 4] = 4,
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale}")
        if num_in_ch != num_out_ch:
            raise ValueError(f"the input is added to the output, so num_in_ch ({num_in_ch}) must be num_out_ch ({num_out_ch})")
        self.scale = scale
        self.checkpointing = False
        self.factor = 3 if scale == 3 else 2
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        self.upconv1 = nn.Conv2d(num_feat, num_feat * self.factor**2, 3, padding=1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(num_feat, num_feat * self.factor**2, 3, padding=1)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                with torch.no_grad():
                    module.weight.mul_(INITIAL_WEIGHT_SCALE)
                    module.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, num_in_ch, height, width), RGB in [0, 1].

        Returns:
            (batch, num_out_ch, height * scale, width * scale), not clamped.
        """
        features = F.leaky_relu_(self.conv_first(x), LEAK)
        for block in self.body:
            features = recompute(block, features, when=self.checkpointing and self.training)
        features = F.leaky_relu_(F.pixel_shuffle(self.upconv1(features), self.factor), LEAK)
        if self.scale == 4:
            features = F.leaky_relu_(F.pixel_shuffle(self.upconv2(features), self.factor), LEAK)
        picture = self.conv_last(F.leaky_relu_(self.conv_hr(features), LEAK))
        return picture + F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the layers of checkpoints from before BasicSR (``recon_trunk.<i>``, ``HRconv``) their present names."""
        renamed = {}
        for key, value in state_dict.items():
            key = re.sub(r"^recon_trunk\.", "body.", key)
            renamed[re.sub(r"^HRconv\.", "conv_hr.", key)] = value
        return renamed

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"num_feat": 8, "num_block": 2}, (torch.rand(2, 3, 12, 9),)
