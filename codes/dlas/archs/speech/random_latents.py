"""Voices from noise: what TorToiSe draws the latents of a random speaker with.

The mapping network of StyleGAN2 (Karras et al. 2020, arXiv:1912.04958) and a linear layer; ``rlg_auto.pth`` and
``rlg_diffuser.pth`` load.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlas.layers.stylegan2 import EqualLinear
from dlas.registry import ARCHS
from dlas.types import PositiveInt

MAPPING_LAYERS = 5


@ARCHS.register("random_latent_converter")
class RandomLatentConverter(nn.Module):
    """Noise to latents; trained to have the moments of real ones.

    Args:
        channels: of noise and latents: 1024 for the published autoregressive model, 2048 for the diffusion decoder.
    """

    def __init__(self, *, channels: PositiveInt = 1024) -> None:
        super().__init__()
        self.channels = channels
        mapping = [EqualLinear(channels, channels, activate=True, lr_mul=0.1) for _ in range(MAPPING_LAYERS)]
        self.layers = nn.Sequential(*mapping, nn.Linear(channels, channels))

    def forward(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, channels) -> latents (B, channels)."""
        return self.layers(noise)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"channels": 6}, (torch.randn(3, 6),)
