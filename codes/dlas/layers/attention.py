"""Attention over the pixels of a picture, with queries, keys and values in one projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.packed_linear import PackedPointwise


def split_heads(qkv: Tensor, heads: int, heads_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of each head.

    Args:
        qkv: (B, T, 3 C).
        heads: number of heads.
        heads_first: channels are ordered as (head, q/k/v, channel); otherwise as (q/k/v, head, channel).

    Returns:
        Three views (B, heads, T, C / heads).
    """
    if heads_first:
        parts = qkv.unflatten(-1, (heads, 3, -1)).permute(3, 0, 2, 1, 4)
    else:
        parts = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    return q, k, v


class PixelAttention(nn.Module):
    """Normalisation, attention of all pixels to all, and a projection that starts at zero, in a residual branch.

    Args:
        norm: normalises (B, channels, H, W).
        channels: of input and output.
        heads: number of heads; divides the channels.
        heads_first: order of the channels of queries, keys and values, see `split_heads`.

    Raises:
        ValueError: `heads` does not divide the channels.
    """

    def __init__(self, norm: nn.Module, channels: int, heads: int, heads_first: bool) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} heads of attention")
        self.heads, self.heads_first = heads, heads_first
        self.norm = norm
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        assert self.proj_out.bias is not None
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        # A convolution of kernel 1 over the picture is faster than one over its flattened pixels, or than a matrix product.
        qkv = F.conv2d(self.norm(x), self.qkv.weight[..., None], self.qkv.bias)
        q, k, v = split_heads(as_pixels(qkv), self.heads, self.heads_first)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        picture = seen.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + F.conv2d(picture, self.proj_out.weight[..., None], self.proj_out.bias)


class AttentionPool(nn.Module):
    """A picture as one vector: the mean of its pixels attends to all of them, each with its learned position.

    Args:
        side: height and width of the input.
        channels: of the input.
        heads: number of heads.
        out_channels: of the result.

    Source: Radford et al. 2021 (arXiv:2103.00020), section 2.4, in guided-diffusion's form.
    """

    def __init__(self, side: int, channels: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, side, side) -> (B, out_channels).

        Raises:
            ValueError: the picture has other than `side` x `side` pixels.
        """
        pixels = as_pixels(x)
        pixels = torch.cat((pixels.mean(1, keepdim=True), pixels), dim=1)
        if pixels.shape[1] != self.positional_embedding.shape[1]:
            side = round((self.positional_embedding.shape[1] - 1) ** 0.5)
            raise ValueError(
                f"attention pooling has positions for features of {side}x{side} pixels and got {x.shape[-2]}x{x.shape[-1]}; "
                "set image_size to the pictures' size"
            )
        qkv = project(pixels + self.positional_embedding.t().to(pixels.dtype), self.qkv_proj)
        q, k, v = split_heads(qkv, self.heads, heads_first=False)
        seen = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # of the other queries nothing would be read
        return project(seen.transpose(1, 2).flatten(2), self.c_proj)[:, 0]


def as_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), contiguous as fast kernels need it; a view where channels are last in memory."""
    return x.flatten(2).transpose(1, 2).contiguous()


def project(x: Tensor, layer: nn.Conv1d | PackedPointwise) -> Tensor:
    """(B, T, C) -> (B, T, D), by a convolution of kernel 1 over (B, C, T)."""
    if isinstance(layer, PackedPointwise):
        return layer.linear(x)
    return F.linear(x, layer.weight.squeeze(-1), layer.bias)
