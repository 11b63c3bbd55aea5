"""What finds the logits of switches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MappingNetwork(nn.Module):
    """Two convolutions with normalisation over the batch between: the selector of 2020.

    Args:
        in_channels: of the features.
        breadth: number of switches.
        kernel_size: of both convolutions, odd.

    Source: the published implementation, branch `attention_norm_alt`, whose names of weights these are.
    """

    def __init__(self, in_channels: int, breadth: int, kernel_size: int = 5) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.attention_conv1 = nn.Conv2d(in_channels, hidden, kernel_size, padding=kernel_size // 2)
        self.att_bn1 = nn.BatchNorm2d(hidden)
        self.attention_conv2 = nn.Conv2d(hidden, breadth, kernel_size, padding=kernel_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> logits (B, breadth, H, W)."""
        return self.attention_conv2(F.leaky_relu(self.att_bn1(self.attention_conv1(features)), 0.1))
