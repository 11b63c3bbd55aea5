"""Attention within windows with a learned bias for each relative position, and what goes around it.

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021 (arXiv:2103.14030),
section 3.2, equation 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_DEVIATION = 0.02
"""Weights of linear layers and biases of relative positions are drawn from a normal distribution of this width."""


class WindowAttention(nn.Module):
    """Multi-head attention within windows.

    Args:
        channels: of input and output, a multiple of `heads`.
        window: side of a window.
        heads: number of heads.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(self, channels: int, window: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=INITIAL_DEVIATION)
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, index: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mixes the places of each window.

        Args:
            windows: (batch, windows, places, channels).
            index: (places, places), entry of the table for each pair of places.
            mask: (windows, places, places), added to the logits.

        Returns:
            The shape of `windows`.
        """
        batch, count, places, channels = windows.shape
        q, k, v = self.qkv(windows).view(batch, count, places, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = position_bias(self.relative_position_bias_table, index)
        mixed = attend(q * self.scale, k, v, bias if mask is None else bias + mask[:, None])
        return self.proj(mixed.transpose(2, 3).reshape(batch, count, places, channels))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k' + bias) v, over the last two dimensions; `q` is scaled already.

    Written out: heads of these networks have 30 channels, which the fused kernels for 16-bit numbers do not take with a bias.
    """
    return (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """(entries, heads) and (queries, keys) -> (heads, queries, keys)."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


def initialise_linear(module: nn.Module) -> None:
    """Draws the weights of all linear layers within from a truncated normal distribution; their biases start at zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=INITIAL_DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def as_picture(x: Tensor) -> Tensor:
    """(batch, height, width, channels) -> (batch, channels, height, width), the same memory."""
    return x.permute(0, 3, 1, 2)


def as_map(x: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, height, width, channels), the same memory."""
    return x.permute(0, 2, 3, 1)


def residual_convolution(channels: int, kind: str) -> nn.Module:
    """The convolution at the end of a group of blocks: one 3x3, or three that narrow the channels to a quarter between them.

    Args:
        channels: of input and output.
        kind: ``1conv``, ``3conv``, or ``identity`` for none.

    Raises:
        ValueError: another kind.
    """
    if kind == "1conv":
        return nn.Conv2d(channels, channels, 3, padding=1)
    if kind == "3conv":
        narrow = channels // 4
        return nn.Sequential(
            nn.Conv2d(channels, narrow, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(narrow, narrow, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(narrow, channels, 3, padding=1),
        )
    if kind == "identity":
        return nn.Identity()
    raise ValueError(f"resi_connection must be 1conv, 3conv or identity, got {kind!r}")
