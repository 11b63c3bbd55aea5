"""The U-Net discriminator of Real-ESRGAN, which judges every pixel.

Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCV workshops 2021
(arXiv:2107.10833), section 3.4 and figure 6, after Schönfeld et al., "A U-Net Based Discriminator for Generative Adversarial
Networks", CVPR 2020 (arXiv:2002.12655).

The layers have the names of published checkpoints: ``conv0`` to ``conv9``, with ``weight_orig``, ``weight_u`` and
``weight_v`` where spectral normalisation is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.padding import pad_to_multiple
from dlas.layers.spectral_norm import SpectralNormConv2d
from dlas.registry import ARCHS
from dlas.types import PositiveInt

LEAK = 0.2
"""Slope of the leaky ReLUs below zero."""

HALVINGS = 3
"""How many times the picture is halved."""


@ARCHS.register("UNetDiscriminatorSN", "unet_discriminator_sn")
class UNetDiscriminatorSN(nn.Module):
    """A U-Net with spectral normalisation.

    Args:
        num_in_ch: input channels.
        num_feat: channels at the input's size; they double with each of three halvings.
        skip_connection: add the features of the way down to those of the way up.
    """

    def __init__(self, *, num_in_ch: PositiveInt = 3, num_feat: PositiveInt = 64, skip_connection: bool = True) -> None:
        super().__init__()
        self.skip_connection = skip_connection
        nf = num_feat
        self.conv0 = nn.Conv2d(num_in_ch, nf, 3, padding=1)
        self.conv1 = SpectralNormConv2d(nf, 2 * nf, 4, stride=2, padding=1, bias=False)
        self.conv2 = SpectralNormConv2d(2 * nf, 4 * nf, 4, stride=2, padding=1, bias=False)
        self.conv3 = SpectralNormConv2d(4 * nf, 8 * nf, 4, stride=2, padding=1, bias=False)
        self.conv4 = SpectralNormConv2d(8 * nf, 4 * nf, 3, padding=1, bias=False)
        self.conv5 = SpectralNormConv2d(4 * nf, 2 * nf, 3, padding=1, bias=False)
        self.conv6 = SpectralNormConv2d(2 * nf, nf, 3, padding=1, bias=False)
        self.conv7 = SpectralNormConv2d(nf, nf, 3, padding=1, bias=False)
        self.conv8 = SpectralNormConv2d(nf, nf, 3, padding=1, bias=False)
        self.conv9 = nn.Conv2d(nf, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Judges pictures.

        Args:
            x: (batch, num_in_ch, height, width), of any size; padded to multiples of 8 within.

        Returns:
            One logit a pixel, (batch, 1, height, width); higher is more real.
        """
        height, width = x.shape[-2:]
        down0 = _activate(self.conv0(pad_to_multiple(x, 2**HALVINGS)))
        down1 = _activate(self.conv1(down0))
        down2 = _activate(self.conv2(down1))
        up = _activate(self.conv3(down2))
        for conv, skipped in ((self.conv4, down2), (self.conv5, down1), (self.conv6, down0)):
            up = _activate(conv(F.interpolate(up, scale_factor=2.0, mode="bilinear", align_corners=False)))
            if self.skip_connection:
                up = up + skipped
        up = _activate(self.conv8(_activate(self.conv7(up))))
        return self.conv9(up)[..., :height, :width]

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"num_feat": 8}, (torch.rand(2, 3, 20, 16),)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu_(x, LEAK)
